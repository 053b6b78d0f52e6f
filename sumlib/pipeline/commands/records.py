"""The results of `sumlib masks` on disk: a record an image, and pictures and a COCO file made from them."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from sumlib.base.files import whole, write_text
from sumlib.base.masks import rle_decode
from sumlib.data.images import read_image
from sumlib.pipeline.commands.pictures import label_map, mask_picture, overlay_picture, save_picture


class Records:
    """The folder ``out`` with the results of images below ``top``, made with ``settings``."""

    def __init__(self, out: Path, top: Path, settings: dict):
        self.out, self.top, self.settings = out, top, settings

    def path(self, name: str) -> Path:
        """Where the record of an image lies."""
        return self.out / "records" / f"{name}.json"

    def has(self, name: str, image: Path) -> bool:
        """Whether there is a record of the image as it is now, made with these settings."""
        try:
            return json.loads(self.path(name).read_text(encoding="utf-8"))["made"] == self._made(image)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def write(self, name: str, image: Path, size: tuple[int, int], masks: list[dict]) -> None:
        """Write the record of an image of ``size`` (H, W) with the records of the mask generator."""
        made = self._made(image)
        about = {"file_name": image.relative_to(self.top).as_posix(), "height": size[0], "width": size[1]}
        numbered = [{"id": k, **mask} for k, mask in enumerate(masks, 1)]
        record = {"image": about, "annotations": numbered, "made": made}
        write_text(self.path(name), json.dumps(record) + "\n")

    def draw(self, name: str, image: Path, forms: Sequence[str]) -> None:
        """Make the pictures of an image that are asked for and older than its record or not there."""
        time = self.path(name).stat().st_mtime_ns
        places = {form: self.out / form / f"{name}.png" for form in ("labels", "overlay")}
        places["masks"] = self.out / "masks" / name
        old = [
            form
            for form, place in places.items()
            if form in forms and not (place.exists() and place.stat().st_mtime_ns >= time)
        ]
        if not old:
            return
        record = self._read(name)
        masks = [rle_decode(entry["segmentation"]) for entry in record["annotations"]]
        size = record["image"]["height"], record["image"]["width"]
        if "labels" in old:
            save_picture(places["labels"], label_map(masks, size))
        if "overlay" in old:
            save_picture(places["overlay"], overlay_picture(read_image(image), masks))
        if "masks" in old:
            _write_folder(places["masks"], masks)

    def count(self, names: Iterable[str]) -> int:
        """The number of masks of some images."""
        return sum(len(self._read(name)["annotations"]) for name in names)

    def join(self, names: Iterable[str], category: str) -> int:
        """Write coco.json of some images; returns the number of masks.

        Records are read one at a time, and none stays in memory.
        """
        images, total = [], 0
        with whole(self.out / "coco.json") as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.write('{"annotations": [')
            for number, name in enumerate(names, 1):
                record = self._read(name)
                images.append({"id": number, **record["image"]})
                for mask in record["annotations"]:
                    total += 1
                    mask |= {"id": total, "image_id": number, "category_id": 1, "iscrowd": 0}
                    mask["score"] = mask["predicted_iou"]
                    file.write((",\n" if total > 1 else "\n") + json.dumps(mask))
            rest = {"images": images, "categories": [{"id": 1, "name": category}], "info": self.settings}
            file.write("\n], " + json.dumps(rest)[1:] + "\n")
        return total

    def _made(self, image: Path) -> dict:
        state = image.stat()
        return self.settings | {"image_bytes": state.st_size, "image_time_ns": state.st_mtime_ns}

    def _read(self, name: str) -> dict:
        return json.loads(self.path(name).read_text(encoding="utf-8"))


def _write_folder(folder: Path, masks: Sequence) -> None:
    """Masks (H, W) bool as 0001.png, 0002.png ... in a folder that is there as a whole or not at all."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for k, mask in enumerate(masks, 1):
        save_picture(temporary / f"{k:04}.png", mask_picture(mask))
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of the files of a folder, in hex."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
