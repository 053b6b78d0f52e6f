"""Pseudo-labels: SAM's automatic masks on unlabeled images, and their refined versions (METHOD sections 2 and 3).

A Parquet file with a row a mask:
image, point_x, point_y, box_x0, box_y0, box_x1, box_y1 (pixels of the original image, the box as `masks.mask_box`), predicted_iou,
stability, area (pixels), size_h, size_w, mask_rle (COCO's counts), logits_png (8-bit PNG of 255 sigmoid(s), low-resolution) and,
after `add_uncertainty`, refined_png (the same of the refined logits). A row group holds the masks of up to 16 images; files
are written and read a row group at a time.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sumlib.base.masks import resized, rle_decode, rle_encode
from sumlib.base.progress import with_bar
from sumlib.config.params import PseudoLabelConfig
from sumlib.data.dataset import Dataset, Sample
from sumlib.model.sum import Sum
from sumlib.pseudo.automatic import AutomaticMasks, Tally

BLOCK = 16  # images in a row group, and in a part that a killed run does not repeat
SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("point_x", pa.float32()),
        ("point_y", pa.float32()),
        *((f"box_{corner}", pa.float32()) for corner in ("x0", "y0", "x1", "y1")),
        ("predicted_iou", pa.float32()),
        ("stability", pa.float32()),
        ("area", pa.int32()),
        ("size_h", pa.int32()),
        ("size_w", pa.int32()),
        ("mask_rle", pa.string()),
        ("logits_png", pa.binary()),
    ]
)
REFINED = SCHEMA.append(pa.field("refined_png", pa.binary()))
Refine = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""`sumlib.refiner.module.refine` of a refiner: embeddings, logits, boxes and points of N masks -> refined logits."""


# ---- 8-bit maps ------------------------------------------------------------------------------------------------------


def encode_map(logits: Tensor) -> list[bytes]:
    """Logits (M, H, W) -> M 8-bit PNGs of round(255 sigmoid(logits))."""
    values = (255 * logits.float().sigmoid()).round().to(torch.uint8).numpy()
    return [cv2.imencode(".png", value)[1].tobytes() for value in values]


def decode_map(png: bytes) -> np.ndarray:
    """Probabilities of `encode_map` as (H, W) uint8; at least 128 where the logit is not negative."""
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)


def map_logits(values: Tensor) -> Tensor:
    """Probabilities (..., H, W) uint8 -> logits float32; 0 and 255 count as 0.5 and 254.5, so the largest is 6.2."""
    return (values.float().clamp(0.5, 254.5) / 255).logit()


# ---- writing ---------------------------------------------------------------------------------------------------------


def generate(
    model: Sum,
    images: Dataset,
    config: PseudoLabelConfig,
    output: Path,
    *,
    parts: Path | None = None,
    progress: bool = True,
) -> Tally:
    """Write the automatic masks of ``images`` (the first ``config.limit_images``) to ``output``; returns what the filters dropped.

    Finished row groups are kept in the folder ``parts`` (beside ``output`` by default) until the file is complete: a run that was
    killed goes on where it stopped and gives the same bytes. A part made by another configuration, model, image or
    version of the code is made again.
    """
    model.eval()
    images = images[: config.limit_images]
    parts = parts or output.with_name(output.name + ".parts")
    parts.mkdir(parents=True, exist_ok=True)
    mark = _fingerprint(model, config)
    starts = range(0, len(images), BLOCK)
    files = [parts / f"{start:08d}.parquet" for start in starts]
    for start, file in with_bar(list(zip(starts, files)), "pseudo-labels", progress):
        samples = [images[index] for index in range(start, min(start + BLOCK, len(images)))]
        block = _block_mark(mark, samples)
        if file.is_file() and pq.read_schema(file).metadata.get(b"mark") == block.encode():
            continue
        find = AutomaticMasks(model, config)
        table = pa.Table.from_pylist(list(_rows(model, samples, find)), SCHEMA)
        _write(file, SCHEMA.with_metadata({"mark": block, "tally": json.dumps(find.tally.record())}), [table])
    total = Tally()
    for file in files:
        total.merge(json.loads(pq.read_schema(file).metadata[b"tally"]))
    record = {"tally": json.dumps(total.record()), "config": json.dumps(asdict(config)), "data": images.name}
    _write(output, SCHEMA.with_metadata(record), (pq.read_table(file) for file in files))
    shutil.rmtree(parts)
    return total


def _rows(model: Sum, samples: list[Sample], find: AutomaticMasks) -> Iterator[dict]:
    """The rows of a block of images."""
    for sample, embedding in zip(samples, encode_block(model, samples)):
        size = sample.image.shape[:2]
        found = find(embedding[None], size)
        for k, png in enumerate(encode_map(found["low"])):
            x0, y0, x1, y1 = found["boxes"][k].tolist()
            yield {
                "image": sample.name,
                "point_x": found["points"][k, 0].item(),
                "point_y": found["points"][k, 1].item(),
                "box_x0": x0,
                "box_y0": y0,
                "box_x1": x1,
                "box_y1": y1,
                "predicted_iou": found["iou_preds"][k].item(),
                "stability": found["stability_score"][k].item(),
                "area": int(found["area"][k]),
                "size_h": size[0],
                "size_w": size[1],
                "mask_rle": rle_encode(found["masks"][k].numpy())["counts"],
                "logits_png": png,
            }


@torch.no_grad()
def encode_block(model: Sum, samples: Sequence[Sample]) -> Tensor:
    """Embeddings (B, C, h, w) float32 of images, as many at once as make one image of SAM's size: 16 and more of micro ones."""
    together = max(1, 1024**2 // model.sam.image_encoder.img_size**2)
    pixels = [model.preprocess(sample.image) for sample in samples]
    return torch.cat(
        [model.encode(torch.stack(pixels[k : k + together])).float() for k in range(0, len(pixels), together)]
    )


def _fingerprint(model: Sum, config: PseudoLabelConfig) -> str:
    """Hash of what makes the masks of an image: configuration, version of torch, code and weights."""
    digest = hashlib.sha256(json.dumps([asdict(config), torch.__version__]).encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _block_mark(mark: str, samples: list[Sample]) -> str:
    digest = hashlib.sha256(mark.encode())
    for sample in samples:
        digest.update(f"{sample.name}{sample.image.shape}".encode() + sample.image.tobytes())
    return digest.hexdigest()


def _write(path: Path, schema: pa.Schema, tables: "Iterator[pa.Table] | list[pa.Table]") -> None:
    """Write the tables as row groups, one at a time; ``path`` is written as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for table in tables:
            if len(table):
                writer.write_table(table.cast(schema), row_group_size=len(table))
    os.replace(temporary, path)


def add_uncertainty(
    source: Path, output: Path, model: Sum, refine: Refine, images: Dataset, *, progress: bool = True
) -> None:
    """Copy the masks of ``source`` to ``output`` with their refined maps, a row group at a time.

    ``refine`` is given each mask's logits as kept (8 bit), its box and its point. Raises ValueError if an image is not among
    ``images``.
    """
    model.eval()
    numbers = {name: index for index, name in enumerate(images.names)}
    file = _open(source)

    def refined() -> Iterator[pa.Table]:
        for group in with_bar(range(file.num_row_groups), "uncertainty", progress):
            table = file.read_row_group(group)
            names = list(dict.fromkeys(table["image"].to_pylist()))
            if strange := [name for name in names if name not in numbers]:
                raise ValueError(
                    f"{source}: image {strange[0]!r} is not in {images.name}; run `dvc repro pseudo_label` again"
                )
            samples = [images[numbers[name]] for name in names]
            yield table.append_column(
                REFINED.field("refined_png"),
                pa.array(_refined_maps(model, refine, table, samples), pa.binary()),
            )

    _write(output, REFINED.with_metadata(file.schema_arrow.metadata), refined())


def _refined_maps(model: Sum, refine: Refine, table: pa.Table, samples: list[Sample]) -> list[bytes]:
    embeddings = encode_block(model, samples)
    place = {sample.name: b for b, sample in enumerate(samples)}
    image = torch.tensor([place[name] for name in table["image"].to_pylist()])
    logits = map_logits(
        torch.from_numpy(np.stack([decode_map(png) for png in table["logits_png"].to_pylist()]))
    )
    columns = [
        torch.tensor(table[name].to_numpy())
        for name in ("point_x", "point_y", "box_x0", "box_y0", "box_x1", "box_y1")
    ]
    xy = torch.stack(columns, 1).view(-1, 3, 2)  # (N, 3, 2): point and both corners of the box
    sizes = [sample.image.shape[:2] for sample in samples]
    xy = torch.cat([model.to_input_frame(one[None], sizes[b]) for one, b in zip(xy, image.tolist())])
    maps, batch = [], max(1, 2**22 // embeddings[0].numel())
    for rows in torch.arange(len(image)).split(batch):
        maps += encode_map(
            refine(embeddings[image[rows]], logits[rows], xy[rows, 1:].flatten(1), xy[rows, 0])
        )
    return maps


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Label:
    """The M pseudo-labels of one image of H x W pixels."""

    masks: np.ndarray
    """(M, H, W) bool, SAM's masks."""
    refined: np.ndarray | None
    """(M, H, W) bool, the refined masks; may be empty where the refiner finds nothing."""
    certainty: np.ndarray | None
    """(M, H, W) float32 in [0, 1], c = 1 - |sigmoid(s) - sigmoid(r)|, or SAM's own confidence |2 sigmoid(s) - 1|; from 8-bit maps."""
    points: np.ndarray
    """(M, 2) float32 x, y that produced each mask, in pixels of the image."""
    boxes: np.ndarray
    """(M, 4) float32 XYXY, pixels."""
    predicted_iou: np.ndarray
    """(M,) float32."""
    stability: np.ndarray
    """(M,) float32."""


class PseudoLabels:
    """Pseudo-labels by image name. ``images`` are the names with at least one mask, in order; ``record`` is what `generate` counted.

    Compact forms (run lengths, 8-bit maps) are cached in memory up to ``memory`` bytes, decoded on every access: all of
    the micro set, what fits of a large one. ``certainty``: "refinement" or "confidence" (`Label.certainty`). Raises FileNotFoundError,
    or ValueError if the file is broken or, with ``refined``, has no refined maps.
    """

    def __init__(
        self, path: Path, *, refined: bool = True, certainty: str = "refinement", memory: int = 2**30
    ):
        if certainty not in ("refinement", "confidence"):
            raise ValueError(f"no certainty {certainty!r}; known are refinement and confidence")
        self.path, self.left, self.kept, self.certainty = Path(path), memory, {}, certainty
        self.file = _open(self.path)
        self.has_refined = "refined_png" in self.file.schema_arrow.names
        if refined and not self.has_refined:
            raise ValueError(f"{path}: has no refined maps; run `dvc repro uncertainty` and use its output")
        self.record = json.loads(self.file.schema_arrow.metadata[b"tally"])
        self.groups: dict[str, int] = {}
        for group in range(self.file.num_row_groups):
            names = self.file.read_row_group(group, ["image"])["image"].to_pylist()
            self.groups |= dict.fromkeys(names, group)
        self.images = list(self.groups)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, name: str) -> Label:
        if name not in self.groups:
            raise KeyError(f"{self.path.name} has no masks of image {name!r}")
        if name not in self.kept:
            loaded = self._load(self.groups[name])
            size = sum(len(png) + 200 for item in loaded.values() for png in item["maps"])
            if size > self.left:
                return self._decode(loaded[name])
            self.kept, self.left = self.kept | loaded, self.left - size
        return self._decode(self.kept[name])

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Some columns of all rows, for statistics."""
        return pq.read_table(self.path, columns=list(columns))

    def _load(self, group: int) -> dict[str, dict]:
        """The images of a row group, compact."""
        table = self.file.read_row_group(group)
        names = np.array(table["image"].to_pylist())
        found = {}
        for name in dict.fromkeys(names.tolist()):
            rows = np.flatnonzero(names == name)
            own = table.take(rows)
            numbers = {
                key: own[key].to_numpy()
                for key in own.column_names
                if key not in ("image", "mask_rle", "logits_png", "refined_png")
            }
            maps = own["logits_png"].to_pylist() + (
                own["refined_png"].to_pylist() if self.has_refined else []
            )
            found[name] = {**numbers, "rles": own["mask_rle"].to_pylist(), "maps": maps}
        return found

    def _decode(self, item: dict) -> Label:
        size = [int(item["size_h"][0]), int(item["size_w"][0])]
        masks = np.stack([rle_decode({"size": size, "counts": counts}) for counts in item["rles"]])
        refined = certainty = None
        if self.has_refined:
            maps = np.stack([decode_map(png) for png in item["maps"]]).reshape(
                2, len(masks), *decode_map(item["maps"][0]).shape
            )
            s, r = (_full_size(values, size) for values in maps)
            refined = r >= 127.5
            certainty = 1 - np.abs(s - r) / 255 if self.certainty == "refinement" else np.abs(2 * s / 255 - 1)
        column = lambda *names: np.stack([item[name] for name in names], 1)
        return Label(
            masks,
            refined,
            certainty,
            column("point_x", "point_y"),
            column("box_x0", "box_y0", "box_x1", "box_y1"),
            item["predicted_iou"],
            item["stability"],
        )


def _full_size(values: np.ndarray, size: list[int]) -> np.ndarray:
    """8-bit low-resolution maps (M, L, L) -> (M, H, W) float32, still in [0, 255]: scaled bilinearly, padding cut off."""
    height, width = size
    maps = resized(torch.from_numpy(values).float()[:, None], (max(size), max(size)))
    return maps[:, 0, :height, :width].numpy()


def _open(path: Path) -> pq.ParquetFile:
    """The Parquet file, or an error that names it and the remedy."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path}: no pseudo-labels there; run `dvc repro pseudo_label` and `dvc repro uncertainty`"
        )
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{path}: not a complete Parquet file ({error}); run `dvc repro pseudo_label` again"
        ) from None
    if missing := set(SCHEMA.names) - set(file.schema_arrow.names):
        raise ValueError(
            f"{path}: lacks the columns {', '.join(sorted(missing))}; run `dvc repro pseudo_label` again"
        )
    return file
