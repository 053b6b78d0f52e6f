"""Data sets by name: `open_dataset("COIFT", root)` gives the same kind of samples from micro and real data."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sumlib.data.dataset import BadSample, Dataset, Entry, Sample
from sumlib.data.images import BadSampleError
from sumlib.data.layouts import coco, pairs, sa1b
from sumlib.data.layouts import label_maps as parsing

__all__ = [
    "REGISTRY",
    "TASK_GROUPS",
    "BadSample",
    "BadSampleError",
    "Dataset",
    "Sample",
    "Source",
    "open_dataset",
]

UNSPECIFIED, SALIENT, ENTITY, PART = range(4)

TASK_GROUPS = {
    "salient": ["COIFT", "DIS-VD", "HRSOD", "ThinObject5K", "BIG", "VOCEVAL"],
    "entity": ["EntitySeg-0", "EntitySeg-1", "EntitySeg-2"],
    "part": ["Bodypart", "EasyPortrait", "Fashionpedia", "Fashionpedia-subpart", "PACO"],
}
"""The 14 test sets, grouped as the paper does."""


@dataclass(frozen=True)
class Source:
    """Where a data set lies under the root and how it is read."""

    folders: tuple[str, ...]
    """Relative to the root; the first that exists is used."""
    adapter: Callable[[Path], list[Entry]]
    task: int
    """0 unspecified, 1 salient, 2 entity, 3 part."""
    first: int | None = None
    """Only this many samples, as the paper does."""


def _folders(images: str, masks: str, threshold: int = 128) -> Callable[[Path], list[Entry]]:
    return partial(pairs.paired_folders, images=images, masks=masks, threshold=threshold)


REGISTRY = {
    "HQSeg-44K": Source(("HQSeg-44K",), pairs.hqseg, SALIENT),
    "EntitySeg": Source(("EntitySeg",), partial(coco.entityseg, split="train"), ENTITY),
    "SA-1B": Source(("SA-1B",), sa1b.sa1b, UNSPECIFIED),
    "COIFT": Source(("test/COIFT",), _folders("images", "masks"), SALIENT),
    "DIS-VD": Source(("test/DIS5K/DIS-VD",), _folders("im", "gt"), SALIENT),
    "HRSOD": Source(("test/HRSOD",), _folders("images", "masks_max255"), SALIENT),
    # soft alpha, cut at one half
    "ThinObject5K": Source(
        ("test/ThinObject5K",), _folders("images_test", "masks_test", threshold=127), SALIENT
    ),
    "BIG": Source(("test/BIG",), partial(pairs.flat_pairs, folders=("val", "test")), SALIENT),
    "VOCEVAL": Source(("test/VOCEVAL",), pairs.flat_pairs, SALIENT),
    "Bodypart": Source(("test/LV-MHP-v2",), parsing.lv_mhp, PART, first=1000),
    "EasyPortrait": Source(("test/EasyPortrait",), parsing.easyportrait, PART, first=1000),
    "Fashionpedia": Source(("test/Fashionpedia",), coco.fashionpedia, PART),
    "Fashionpedia-subpart": Source(
        ("test/Fashionpedia-subpart", "test/Fashionpedia"),
        partial(coco.fashionpedia, categories=coco.SUBPARTS),
        PART,
    ),
    "PACO": Source(("test/PACO",), coco.paco, PART, first=1000),
}
"""Data set name -> its source. The internal sets (FT-Large's) and the development sets are plain COCO JSON.

`test/EntitySeg` is the official EntitySeg tree again (a link will do): its validation images lie in the same packs.
"""
for _number, _pack in enumerate(coco.PACKS):
    REGISTRY[f"EntitySeg-{_number}"] = Source(
        ("test/EntitySeg",), partial(coco.entityseg, split="val", pack=_pack), ENTITY
    )
for _level, _task in (("salient", SALIENT), ("entity", ENTITY), ("part", PART)):
    REGISTRY[f"Internal-{_level}"] = Source(
        ("internal",), partial(coco.coco, annotations=f"{_level}.json"), _task
    )
    REGISTRY[f"dev-{_level}"] = Source(("dev",), partial(coco.coco, annotations=f"{_level}.json"), _task)


def open_dataset(name: str, root: Path, registry: Mapping[str, Source] = REGISTRY) -> Dataset:
    """The data set `name` of a registry under `root`, without reading any image.

    Raises ValueError for an unknown name, an empty or broken set, FileNotFoundError for a missing folder or file.
    """
    if name not in registry:
        near = difflib.get_close_matches(name, registry, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(registry))}"
        raise ValueError(f"no data set is called {name!r}; {hint}")
    source = registry[name]
    folders = [Path(root) / folder for folder in source.folders]
    folder = next((f for f in folders if f.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(f"{folders[0]}: folder of data set {name} is missing; put the data set there")
    entries = source.adapter(folder)
    if not entries:
        raise ValueError(f"{folder}: data set {name} holds no sample; unpack it again")
    return Dataset(name, source.task, entries[: source.first])
