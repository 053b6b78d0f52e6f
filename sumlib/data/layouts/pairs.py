"""Adapters for binary masks stored as image files: one mask per image, found by its name."""

from functools import partial
from pathlib import Path

from sumlib.data.dataset import Entry, Loaded
from sumlib.data.images import BadSampleError, read_image, read_mask, require_same_size

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
HQSEG_TREES = {  # sub-tree -> folders of images and masks; the same folder = jpg and png side by side
    "DIS-TR": ("DIS5K/DIS-TR/im", "DIS5K/DIS-TR/gt"),
    "ThinObject5K": (
        "thin_object_detection/ThinObject5K/images_train",
        "thin_object_detection/ThinObject5K/masks_train",
    ),
    "DUTS-TR": ("cascade_psp/DUTS-TR", "cascade_psp/DUTS-TR"),
    "DUTS-TE": ("cascade_psp/DUTS-TE", "cascade_psp/DUTS-TE"),
    "ecssd": ("cascade_psp/ecssd", "cascade_psp/ecssd"),
    "fss_all": ("cascade_psp/fss_all", "cascade_psp/fss_all"),
    "MSRA_10K": ("cascade_psp/MSRA_10K", "cascade_psp/MSRA_10K"),
}


def paired_folders(root: Path, images: str, masks: str, threshold: int = 128) -> list[Entry]:
    """`images/<stem>.jpg` and `masks/<stem>.png` under `root`; foreground is `value > threshold` of 0..255.

    Either folder may be the other: then the jpg is the image and the png the mask. A file without its
    counterpart becomes an entry that raises BadSampleError. Raises FileNotFoundError if a folder is missing.
    """
    if images == masks:
        files = _files(root / images)
        pictures = {f.stem: f for f in files if f.suffix.lower() != ".png"}
        truths = {f.stem: f for f in files if f.suffix.lower() == ".png"}
    else:
        pictures = {f.stem: f for f in _files(root / images)}
        truths = {f.stem: f for f in _files(root / masks)}
    entries = []
    for stem in sorted(pictures.keys() | truths.keys()):
        image = pictures.get(stem, root / images / f"{stem}.jpg")
        entries.append(_entry(stem, image, truths.get(stem, root / masks / f"{stem}.png"), threshold))
    return entries


def flat_pairs(root: Path, folders: tuple[str, ...] = (".",), threshold: int = 128) -> list[Entry]:
    """`<name>_im.{jpg,png}` and `<name>_gt.png` side by side (BIG in `val` and `test`, VOCEVAL in one
    folder).

    The full stem is the name, as one VOC image id may serve several classes. Of `folders` those that exist
    are read. Raises FileNotFoundError if none does.
    """
    present = [root / folder for folder in folders if (root / folder).is_dir()]
    entries = []
    for folder in present or [root / folders[0]]:
        files = _files(folder)
        pictures = {f.stem[:-3]: f for f in files if f.stem.endswith("_im")}
        truths = {f.stem[:-3]: f for f in files if f.stem.endswith("_gt")}
        for stem in sorted(pictures.keys() | truths.keys()):
            image = pictures.get(stem, folder / f"{stem}_im.jpg")
            entries.append(_entry(stem, image, truths.get(stem, folder / f"{stem}_gt.png"), threshold))
    return entries


def hqseg(root: Path) -> list[Entry]:
    """HQSeg-44K in HQ-SAM's packaging: DIS, ThinObject5K, DUTS (two folders), ECSSD, FSS and MSRA-10K.

    Names are `<sub-tree>-<stem>`. Masks are cut at > 128, as HQ-SAM. What the paper calls DUT-OMRON is taken
    to be DUTS (inferred). Raises FileNotFoundError if a sub-tree is missing.
    """
    return [
        Entry(f"{tree}-{entry.name}", entry.path, entry.load)
        for tree, folders in HQSEG_TREES.items()
        for entry in paired_folders(root, *folders)
    ]


def load_pair(image_path: Path, mask_path: Path, threshold: int) -> Loaded:
    """Image (H, W, 3) uint8 and its mask (1, H, W) bool. Raises BadSampleError, see `images`."""
    if not image_path.is_file():
        raise BadSampleError(image_path, f"image is missing; restore it or remove its mask {mask_path}")
    if not mask_path.is_file():
        raise BadSampleError(mask_path, f"mask is missing; restore it or remove its image {image_path}")
    image, mask = read_image(image_path), read_mask(mask_path, threshold)
    require_same_size(image, image_path, mask, mask_path)
    return image, mask[None], {}


def _entry(name: str, image: Path, mask: Path, threshold: int) -> Entry:
    return Entry(name, image, partial(load_pair, image, mask, threshold))


def _files(folder: Path) -> list[Path]:
    """Image files of `folder`, sorted. Raises FileNotFoundError naming it."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: folder is missing; unpack the data set so that it exists")
    return sorted(f for f in folder.iterdir() if f.suffix in IMAGE_SUFFIXES and not f.name.startswith("."))
