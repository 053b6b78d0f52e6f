"""The micro world's data sets: how each looks, and how `sample/` is written.

Every set stands for one of the paper's and lies on disk in that set's layout. The 14 test sets each shift
away from the training sets in a way of their own (`SETS`, documented there), and are used for the final
tables only; every choice is made on ``dev``.

    python -m sumlib.micro.sets sample
"""

import argparse
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sumlib.micro.export import masks_of, write_dataset
from sumlib.micro.shapes import OBJECTS, UNSEEN
from sumlib.micro.world import Scene, Style, make_scene

PLAIN = Style()


@dataclass(frozen=True)
class MicroSet:
    """One data set of the micro world."""

    scenes: int
    level: str | None
    """Every scene has a mask at this level; None: no condition."""
    style: Style | None
    """How it looks; None: a look drawn anew for each scene (`broad_style`)."""
    shift: str
    """In what it differs from the training sets, in words."""


def broad_style(rng: np.random.Generator) -> Style:
    """A look drawn at random: unlabeled images, and what the foundation model was trained on, are of many
    kinds.
    """
    low, high = np.sort(rng.uniform(11, 23, 2))
    return Style(
        scale=(low, high),
        attached=0.5,
        distractors=(0, int(rng.integers(1, 5))),
        detail=rng.uniform(0.75, 1.25),
        thin=rng.uniform(0.8, 1.3),
        texture=rng.uniform(0.02, 0.1),
        noise=rng.uniform(0.005, 0.05),
        lighting=rng.uniform(0, 0.4),
        contrast=(rng.uniform(0.6, 0.9), 1.0),
        blur=max(0.0, rng.uniform(-0.6, 0.6)),
    )


SETS = {
    "HQSeg-44K": MicroSet(480, "salient", PLAIN, "training: salient masks, half of them of one object"),
    "EntitySeg": MicroSet(
        320, "entity", replace(PLAIN, distractors=(1, 3)), "training: all entities of busier scenes"
    ),
    "SA-1B": MicroSet(560, None, None, "unlabeled: many looks"),
    "internal": MicroSet(
        320,
        "part",
        replace(PLAIN, scale=(14.0, 20.0), texture=0.06),
        "training: salient, entity and part masks",
    ),
    "dev": MicroSet(72, "part", None, "development: many looks, all levels"),
    "COIFT": MicroSet(50, "salient", replace(PLAIN, thin=0.8, scale=(17.0, 22.0)), "thin strokes"),
    "DIS-VD": MicroSet(
        50,
        "salient",
        replace(PLAIN, detail=1.35, thin=0.85, scale=(18.0, 22.0)),
        "more spokes, teeth and strands",
    ),
    "HRSOD": MicroSet(50, "salient", replace(PLAIN, noise=0.005, texture=0.03), "clean images"),
    "ThinObject5K": MicroSet(
        50,
        "salient",
        replace(PLAIN, kinds=("comb", "ladder", "plant", "creature"), thin=0.85),
        "thin objects only",
    ),
    "BIG": MicroSet(50, "salient", replace(PLAIN, scale=(21.0, 25.0), distractors=(0, 1)), "large objects"),
    "VOCEVAL": MicroSet(
        50, "salient", replace(PLAIN, distractors=(3, 5), texture=0.08, noise=0.04), "clutter and noise"
    ),
    "EntitySeg-0": MicroSet(40, "entity", replace(PLAIN, distractors=(1, 3)), "none: the training look"),
    "EntitySeg-1": MicroSet(
        40, "entity", replace(PLAIN, lighting=0.5, contrast=(0.55, 0.75)), "strong light, low contrast"
    ),
    "EntitySeg-2": MicroSet(
        40, "entity", replace(PLAIN, distractors=(3, 5), scale=(12.0, 16.0)), "many small objects"
    ),
    "Bodypart": MicroSet(
        36,
        "part",
        replace(PLAIN, kinds=("creature", "fish"), attached=0.8),
        "animate objects, often touching",
    ),
    "EasyPortrait": MicroSet(
        36,
        "part",
        replace(PLAIN, scale=(22.0, 25.0), attached=0.0, distractors=(0, 1)),
        "one object, close up",
    ),
    "Fashionpedia": MicroSet(36, "part", replace(PLAIN, texture=0.12), "strong texture"),
    "Fashionpedia-subpart": MicroSet(
        36, "part", replace(PLAIN, scale=(13.0, 16.0), detail=0.85), "small objects with small parts"
    ),
    "PACO": MicroSet(
        36,
        "part",
        replace(PLAIN, kinds=(*UNSEEN, *OBJECTS)[: len(UNSEEN) + 3], blur=0.5),
        "kinds never trained on, blur",
    ),
}


def scenes(name: str, count: int | None = None) -> Iterator[Scene]:
    """The scenes of set ``name``, the same ones every time; ``count`` limits them."""
    chosen = SETS[name]
    rng = np.random.default_rng(zlib.crc32(f"micro {name}".encode()))
    for _ in range(chosen.scenes if count is None else count):
        while True:
            scene = make_scene(rng, chosen.style or broad_style(rng))
            if chosen.level is None or masks_of(scene, chosen.level):
                break
        yield scene


def write_sample(root: Path) -> None:
    """Write every set of the micro world under ``root``."""
    for name in SETS:
        write_dataset(name, root, list(scenes(name)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("root", type=Path)
    write_sample(parser.parse_args().root)
