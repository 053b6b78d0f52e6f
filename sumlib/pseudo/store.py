"""Pseudo-labels: SAM's automatic masks on unlabeled images, and their refined versions (docs/method.md §2 and
3).

A Parquet file with a row a mask: image, point_x, point_y, box_x0, box_y0, box_x1, box_y1 (pixels of the
original image, the box as `masks.mask_box`), predicted_iou, stability, area (pixels), size_h, size_w,
mask_rle (COCO's counts), logits_png (8-bit PNG of 255 sigmoid(s), low-resolution) and, after
`add_uncertainty`, refined_png (the same of the refined logits). A row group holds the masks of up to 16
images; files are written and read a row group at a time.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sumlib.base.code import code_hash
from sumlib.base.files import remove_files, whole
from sumlib.base.masks import MAX_PIXELS, resized, rle_decode, rle_encode, run_total
from sumlib.base.progress import with_bar
from sumlib.config.params import PseudoLabelConfig
from sumlib.data.dataset import Dataset, Sample
from sumlib.model.sum import Sum
from sumlib.pseudo.automatic import AutomaticMasks, Tally
from sumlib.uncertainty import certainty_between

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
AGAIN = "run `dvc repro pseudo_label` again"
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
REFINED = SCHEMA.append(pa.field("refined_png", pa.binary()))
Refine = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""`sumlib.refiner.module.refine` of a refiner: embeddings, logits, boxes and points of N masks -> refined
logits."""


# ---- 8-bit maps --------------------------------------------------------------------------------


def encode_map(logits: Tensor) -> list[bytes]:
    """Logits (M, H, W) -> M 8-bit PNGs of round(255 sigmoid(logits)). Raises ValueError if one is NaN."""
    if wrong := logits.isnan().flatten(1).any(1).nonzero().flatten().tolist():
        raise ValueError(f"the logits of mask {wrong[0]} hold NaN")
    values = (255 * logits.float().sigmoid()).round().to(torch.uint8).cpu().numpy()
    return [cv2.imencode(".png", value)[1].tobytes() for value in values]


def decode_map(png: bytes) -> np.ndarray:
    """Probabilities of `encode_map` as (H, W) uint8; at least 128 where the logit is not negative.

    Raises ValueError if it is no such map.
    """
    values = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED) if png else None
    if values is None or values.ndim != 2 or values.dtype != np.uint8:
        raise ValueError("is no 8-bit grey PNG")
    return values


def map_logits(values: Tensor) -> Tensor:
    """Probabilities (..., H, W) uint8 -> logits float32; 0 and 255 count as 0.5 and 254.5, so the largest is
    6.2.
    """
    return (values.float().clamp(0.5, 254.5) / 255).logit()


# ---- writing -----------------------------------------------------------------------------------


def generate(
    model: Sum,
    images: Dataset,
    config: PseudoLabelConfig,
    output: Path,
    *,
    parts: Path | None = None,
    progress: bool = True,
) -> Tally:
    """Write the automatic masks of ``images`` (the first ``config.limit_images``) to ``output``.

    Returns what the filters dropped. Finished row groups are kept in the folder ``parts`` (beside ``output``
    by default) until the file is complete: a run that was killed goes on where it stopped and gives the same
    bytes. A part made by another configuration, model, image or version of the code, or a damaged one, is
    made again, and a message says so. Of ``parts`` only these files are removed. Raises ValueError if the
    model's weights or what it computes hold NaN.
    """
    model.eval()
    _require_numbers(model)
    images = images[: config.limit_images]
    parts = parts or output.with_name(output.name + ".parts")
    parts.mkdir(parents=True, exist_ok=True)
    mark = _fingerprint(model, config)
    starts = range(0, len(images), BLOCK)
    files = [parts / f"{start:08d}.parquet" for start in starts]
    told = False
    for start, file in with_bar(list(zip(starts, files)), "pseudo-labels", progress):
        samples = [images[index] for index in range(start, min(start + BLOCK, len(images)))]
        block = _block_mark(mark, samples)
        if file.is_file():
            if _mark(file) == block.encode():
                continue
            if not told:
                print(f"{file}: is damaged, or of another configuration, code or data; starting anew")
                told = True
        find = AutomaticMasks(model, config)
        table = pa.Table.from_pylist(list(_rows(model, samples, find)), SCHEMA)
        _write(file, SCHEMA.with_metadata({"mark": block, "tally": json.dumps(find.tally.record())}), [table])
    total = Tally()
    for file in files:
        total.merge(json.loads(pq.read_schema(file).metadata[b"tally"]))
    record = {"tally": json.dumps(total.record()), "config": json.dumps(asdict(config)), "data": images.name}
    _write(output, SCHEMA.with_metadata(record), (pq.read_table(file) for file in files))
    remove_files(parts, files)
    return total


def _mark(part: Path) -> bytes | None:
    """What a part was made from (`_block_mark`); None if it is damaged."""
    try:
        return (pq.read_table(part).schema.metadata or {}).get(b"mark")
    except (pa.ArrowException, OSError):
        return None


def _rows(model: Sum, samples: list[Sample], find: AutomaticMasks) -> Iterator[dict]:
    """The rows of a block of images."""
    for sample, embedding in zip(samples, encode_block(model, samples)):
        size = sample.image.shape[:2]
        if not embedding.isfinite().all():
            raise ValueError(
                f"image {sample.name!r}: its embedding holds NaN or infinity; train the model anew"
            )
        found = find(embedding[None], size)
        try:
            maps = encode_map(found["low"])
        except ValueError as error:
            raise ValueError(f"image {sample.name!r}: {error}; train the model anew") from None
        for k, png in enumerate(maps):
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
    """Embeddings (B, C, h, w) float32 of images.

    As many are encoded at once as make one image of SAM's size: 16 and more of micro ones.
    """
    together = max(1, 1024**2 // model.sam.image_encoder.img_size**2)
    pixels = [model.preprocess(sample.image) for sample in samples]
    return torch.cat(
        [model.encode(torch.stack(pixels[k : k + together])).float() for k in range(0, len(pixels), together)]
    )


def _require_numbers(model: torch.nn.Module) -> None:
    """Raise ValueError, naming the weight, if a model holds NaN or infinity: it would find no mask."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"the model's weight {name} holds NaN or infinity; train it anew")


def _fingerprint(model: Sum, config: PseudoLabelConfig) -> str:
    """Hash of what makes the masks of an image: configuration, version of torch, code and weights.

    The code is that of this module and all that it imports: the model's, the decoder's, the filters'.
    """
    code = code_hash("sumlib.pseudo.store", type(model).__module__)
    digest = hashlib.sha256(json.dumps([asdict(config), torch.__version__, code]).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _block_mark(mark: str, samples: list[Sample]) -> str:
    digest = hashlib.sha256(mark.encode())
    for sample in samples:
        digest.update(f"{sample.name}{sample.image.shape}".encode() + sample.image.tobytes())
    return digest.hexdigest()


def _write(path: Path, schema: pa.Schema, tables: Iterator[pa.Table] | list[pa.Table]) -> None:
    """Write the tables as row groups, one at a time; ``path`` is written as a whole or not at all."""
    with whole(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for table in tables:
            if len(table):
                writer.write_table(table.cast(schema), row_group_size=len(table))


def add_uncertainty(
    source: Path, output: Path, model: Sum, refine: Refine, images: Dataset, *, progress: bool = True
) -> None:
    """Copy the masks of ``source`` to ``output`` with their refined maps, a row group at a time.

    ``refine`` is given each mask's logits as kept (8 bit), its box and its point. Raises ValueError if an
    image is not among ``images`` or has another size there, a row is broken, or a refined map holds NaN.
    """
    model.eval()
    _require_numbers(model)
    numbers = {name: index for index, name in enumerate(images.names)}
    file = _open(source)

    def refined() -> Iterator[pa.Table]:
        for group in with_bar(range(file.num_row_groups), "uncertainty", progress):
            table = _read_group(file, source, group)
            check_rows(table, source, _first_row(file, group))
            sizes = {
                name: (height, width)
                for name, height, width in zip(*(table[c].to_pylist() for c in ("image", "size_h", "size_w")))
            }
            if strange := [name for name in sizes if name not in numbers]:
                raise ValueError(f"{source}: image {strange[0]!r} is not in {images.name}; {AGAIN}")
            samples = [images[numbers[name]] for name in sizes]
            for sample in samples:
                require_image_size(sizes[sample.name], sample, source)
            yield table.append_column(
                REFINED.field("refined_png"),
                pa.array(_refined_maps(model, refine, table, samples), pa.binary()),
            )

    _write(output, REFINED.with_metadata(file.schema_arrow.metadata), refined())


def _refined_maps(model: Sum, refine: Refine, table: pa.Table, samples: list[Sample]) -> list[bytes]:
    embeddings = encode_block(model, samples)
    device = embeddings.device
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
        boxes, points = xy[rows, 1:].flatten(1), xy[rows, 0]
        own = embeddings[image[rows].to(device)]
        logits_of_rows = refine(own, *(value.to(device) for value in (logits[rows], boxes, points)))
        try:
            maps += encode_map(logits_of_rows)
        except ValueError:
            wrong = int(rows[int(logits_of_rows.isnan().flatten(1).any(1).nonzero()[0, 0])])
            name = samples[int(image[wrong])].name
            raise ValueError(f"image {name!r}: a refined map holds NaN; train the refiner anew") from None
    return maps


# ---- reading -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Label:
    """The M pseudo-labels of one image of H x W pixels."""

    masks: np.ndarray
    """(M, H, W) bool, SAM's masks."""
    refined: np.ndarray | None
    """(M, H, W) bool, the refined masks; may be empty where the refiner finds nothing."""
    certainty: np.ndarray | None
    """(M, H, W) float32 in [0, 1], from 8-bit maps: c = 1 - |sigmoid(s) - sigmoid(r)|, or SAM's own
    confidence, |2 sigmoid(s) - 1|."""
    points: np.ndarray
    """(M, 2) float32 x, y that produced each mask, in pixels of the image."""
    boxes: np.ndarray
    """(M, 4) float32 XYXY, pixels."""
    predicted_iou: np.ndarray
    """(M,) float32."""
    stability: np.ndarray
    """(M,) float32."""


class PseudoLabels:
    """Pseudo-labels by image name.

    ``images`` are the names with at least one mask, in order; ``record`` is what `generate` counted. Compact
    forms (run lengths, 8-bit maps) are cached in memory up to ``memory`` bytes, and decoded on every access:
    all of the micro set, what fits of a large one. ``certainty`` is "refinement" or "confidence"
    (`Label.certainty`).

    Raises FileNotFoundError, or ValueError if the file is broken or, with ``refined``, has no refined maps.
    Rows are checked when they are read: a ValueError names the file, the row and the image.
    """

    def __init__(
        self, path: Path, *, refined: bool = True, certainty: str = "refinement", memory: int = 2**30
    ):
        if certainty not in ("refinement", "confidence"):
            raise ValueError(f"no certainty {certainty!r}; known are refinement and confidence")
        self.path, self.left, self.certainty = Path(path), memory, certainty
        self.kept: dict[str, dict] = {}
        self.checked: set[int] = set()
        self.refined_areas: dict[str, np.ndarray] = {}
        self.file = _open(self.path)
        self.has_refined = "refined_png" in self.file.schema_arrow.names
        if refined and not self.has_refined:
            raise ValueError(f"{path}: has no refined maps; run `dvc repro uncertainty` and use its output")
        self.record = _tally(self.file, self.path)
        self.groups: dict[str, int] = {}
        for group in range(self.file.num_row_groups):
            names = _read_group(self.file, self.path, group, ["image"])["image"].to_pylist()
            for row, name in enumerate(names):
                if not name or self.groups.setdefault(name, group) != group:
                    reason = f"its image {name!r} stands in two row groups" if name else "has no image"
                    raise _bad_row(self.path, _first_row(self.file, group) + row, name, reason)
        self.images = list(self.groups)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, name: str) -> Label:
        """All labels of an image, decoded at full size."""
        return self.read(name)

    def read(self, name: str, rows: Sequence[int] | np.ndarray | None = None) -> Label:
        """Some labels of an image, in the order of ``rows``; None: all.

        Only these are decoded at full size.
        """
        item = self._item(name)
        rows = list(range(len(item["rles"]))) if rows is None else [int(row) for row in rows]
        try:
            return self._decode(item, rows)
        except ValueError as error:
            raise ValueError(f"{self.path}: a mask of image {name!r} {error}; {AGAIN}") from None

    def size(self, name: str) -> tuple[int, int]:
        """(height, width) of an image when its masks were made."""
        item = self._item(name)
        return int(item["size_h"][0]), int(item["size_w"][0])

    def areas(self, name: str, kind: str) -> np.ndarray:
        """Pixels (M,) int64 of SAM's masks (``kind`` "sam") or the refined ones ("refined") of an image."""
        if kind == "sam":
            return self._item(name)["area"].astype(np.int64)
        if name not in self.refined_areas:  # a map at a time; eight bytes a mask are kept
            item = self._item(name)
            try:
                maps = (self._refined(item, [row]) for row in range(len(item["rles"])))
                self.refined_areas[name] = np.array([np.count_nonzero(m >= 127.5) for m in maps], np.int64)
            except ValueError as error:
                raise ValueError(f"{self.path}: a mask of image {name!r} {error}; {AGAIN}") from None
        return self.refined_areas[name]

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Some columns of all rows, for statistics."""
        return pq.read_table(self.path, columns=list(columns))

    def _item(self, name: str) -> dict:
        """The labels of an image, compact."""
        if name not in self.groups:
            raise KeyError(f"{self.path.name} has no masks of image {name!r}")
        if name not in self.kept:
            loaded = self._load(self.groups[name])
            size = sum(len(png) + 200 for item in loaded.values() for png in item["maps"])
            if size > self.left:
                return loaded[name]
            self.kept.update(loaded)
            self.left -= size
        return self.kept[name]

    def _load(self, group: int) -> dict[str, dict]:
        """The images of a row group, compact."""
        table = _read_group(self.file, self.path, group)
        if group not in self.checked:
            check_rows(table, self.path, _first_row(self.file, group))
            self.checked.add(group)
        names = np.array(table["image"].to_pylist())
        items = {}
        for name in dict.fromkeys(names.tolist()):
            own = table.take(np.flatnonzero(names == name))
            numbers = {
                key: own[key].to_numpy()
                for key in own.column_names
                if key not in ("image", "mask_rle", "logits_png", "refined_png")
            }
            maps = own["logits_png"].to_pylist()
            maps += own["refined_png"].to_pylist() if self.has_refined else []
            items[name] = {**numbers, "rles": own["mask_rle"].to_pylist(), "maps": maps}
        return items

    def _decode(self, item: dict, rows: Sequence[int]) -> Label:
        size = [int(item["size_h"][0]), int(item["size_w"][0])]
        masks = [rle_decode({"size": size, "counts": item["rles"][row]}) for row in rows]
        refined = certainty = None
        if self.has_refined:
            s = _full_size(np.stack([decode_map(item["maps"][row]) for row in rows]), size)
            r = self._refined(item, rows)
            refined = r >= 127.5
            own = np.abs(2 * s / 255 - 1)
            certainty = certainty_between(s, r, 255) if self.certainty == "refinement" else own
        column = lambda *names: np.stack([item[name][rows] for name in names], 1)
        return Label(
            np.stack(masks),
            refined,
            certainty,
            column("point_x", "point_y"),
            column("box_x0", "box_y0", "box_x1", "box_y1"),
            item["predicted_iou"][rows],
            item["stability"][rows],
        )

    def _refined(self, item: dict, rows: Sequence[int]) -> np.ndarray:
        """Refined maps (K, H, W) float32 in [0, 255] of some rows."""
        size = [int(item["size_h"][0]), int(item["size_w"][0])]
        return _full_size(np.stack([decode_map(item["maps"][len(item["rles"]) + row]) for row in rows]), size)


def check_rows(table: pa.Table, path: Path, first: int = 0) -> None:
    """Raise ValueError, naming file, row and image, for a row of ``table`` (rows from ``first`` on) that is
    broken.

    Checked are missing values, numbers that are not finite, sizes, run lengths and the headers of maps.
    """
    columns = table.to_pydict()
    sizes: dict[str, tuple] = {}
    for row, name in enumerate(columns["image"]):
        values = {key: column[row] for key, column in columns.items()}
        if missing := [key for key, value in values.items() if value is None or value in ("", b"")]:
            raise _bad_row(path, first + row, name, f"has no {missing[0]}")
        for key, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise _bad_row(path, first + row, name, f"its {key} is {value}")
        height, width = size = values["size_h"], values["size_w"]
        if min(size) < 1 or height * width > MAX_PIXELS or sizes.setdefault(name, size) != size:
            raise _bad_row(path, first + row, name, f"says {height} x {width}, not the image's size")
        if values["area"] < 1:
            raise _bad_row(path, first + row, name, f"has an area of {values['area']} pixels")
        if (total := run_total(values["mask_rle"])) != height * width:
            covered = "are broken" if total < 0 else f"cover {total} pixels"
            reason = f"its run lengths {covered}, the image has {height} x {width}"
            raise _bad_row(path, first + row, name, reason)
        for key in ("logits_png", "refined_png"):
            if key in values and not (values[key].startswith(PNG_START) and values[key].endswith(PNG_END)):
                raise _bad_row(path, first + row, name, f"its {key} is no whole PNG")


def require_image_size(size: tuple[int, int], sample: Sample, path: Path) -> None:
    """Raise ValueError unless an image still has the ``size`` (height, width) that its pseudo-labels were
    made for.
    """
    if tuple(size) != sample.image.shape[:2]:
        now = "{} x {}".format(*sample.image.shape[:2])
        raise ValueError(
            f"{path}: image {sample.name!r} is {now}, its masks were made at {size[0]} x {size[1]}; "
            f"restore the image, or {AGAIN}"
        )


def _bad_row(path: Path, row: int, name: str | None, reason: str) -> ValueError:
    return ValueError(f"{path}: row {row} (image {name!r}) {reason}; {AGAIN}")


def _read_group(file: pq.ParquetFile, path: Path, group: int, columns: list[str] | None = None) -> pa.Table:
    """A row group, or some of its columns. Raises ValueError if the file is damaged there."""
    try:
        return file.read_row_group(group, columns)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); {AGAIN}") from None


def _first_row(file: pq.ParquetFile, group: int) -> int:
    """Number of the first row of a row group."""
    return sum(file.metadata.row_group(number).num_rows for number in range(group))


def _tally(file: pq.ParquetFile, path: Path) -> dict:
    """What `generate` counted, as the file says. Raises ValueError if it does not."""
    try:
        return json.loads(file.schema_arrow.metadata[b"tally"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path}: does not say what was counted; {AGAIN}") from None


def _full_size(values: np.ndarray, size: list[int]) -> np.ndarray:
    """8-bit low-resolution maps (M, L, L) -> (M, H, W) float32, still in [0, 255]: scaled bilinearly, padding
    cut off.
    """
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
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a complete Parquet file ({error}); {AGAIN}") from None
    if missing := set(SCHEMA.names) - set(file.schema_arrow.names):
        raise ValueError(f"{path}: lacks the columns {', '.join(sorted(missing))}; {AGAIN}")
    for field in REFINED:
        place = file.schema_arrow.get_field_index(field.name)
        if place >= 0 and file.schema_arrow.field(place).type != field.type:
            kinds = f"{file.schema_arrow.field(place).type}, not {field.type}"
            raise ValueError(f"{path}: column {field.name} holds {kinds}; {AGAIN}")
    return file
