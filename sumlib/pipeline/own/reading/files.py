"""Files of a folder by name, and which mask files belong to which image. Nothing is opened here."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

READ = re.compile(r"(?i)\.(jpe?g|jpe|jfif|png|tiff?|webp|bmp|gif|p[pgn]m|jp2|avif|tga)")
"""Suffixes of files that Pillow reads."""
FOREIGN = re.compile(r"(?i)\.(hei[cf]|dng|cr2|nef|arw|raw|psd|dcm|nii|npy|czi|nd2|lif|svs|pdf)")
"""Suffixes of pictures that it does not read: they are listed as such."""
WORDS = r"(?:images?|imgs?|im|photos?|masks?|gt|labels?|segs?|segmentation|annotations?|instances?)"
"""What names of images and masks hold beside the number they share."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A file as the folder lists it."""

    path: Path
    key: str
    """Its path below the folder, without suffix, `/` between folders, composed Unicode (NFC)."""
    size: int
    """Bytes."""
    changed: int
    """Time of its last change, ns."""


def is_image_name(name: str) -> bool:
    """Whether a file of that name is an image that Pillow reads.

    >>> is_image_name("a.JPG"), is_image_name("a.txt"), is_image_name("._a.jpg")
    (True, False, False)
    """
    return bool(READ.fullmatch(os.path.splitext(name)[1])) and not name.startswith(".")


def list_images(folder: Path, deep: bool = True) -> tuple[list[Listed], list[Path]]:
    """Images of a folder and of those inside it (``deep``), by name; and pictures that Pillow can not read.

    Hidden files and folders are passed over, and so are what a project makes inside itself.
    """
    images, foreign, folders, seen = [], [], [str(folder)], set()
    start = len(str(folder).rstrip(os.sep)) + 1
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    place = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                    if deep and entry.name != "__MACOSX" and place not in seen:  # a link may lead back
                        folders.append(entry.path)
                        seen.add(place)
                    continue
                stem, suffix = os.path.splitext(entry.name)
                if READ.fullmatch(suffix):
                    try:
                        found = entry.stat()
                        size, changed = found.st_size, found.st_mtime_ns
                    except OSError:  # a link that leads nowhere
                        size, changed = -1, 0
                    key = nfc(os.path.join(os.path.dirname(entry.path), stem)[start:])
                    images.append(Listed(Path(entry.path), key, size, changed))
                elif FOREIGN.fullmatch(suffix):
                    foreign.append(Path(entry.path))
    images.sort(key=lambda file: (file.key, str(file.path)))
    return images, sorted(foreign)


def listed(path: Path, folder: Path | None = None) -> Listed:
    """One file as `list_images` of the folder gives it; its key is its stem where it lies elsewhere."""
    inside = folder is not None and path.is_relative_to(folder)
    key = nfc(str(path.relative_to(folder).with_suffix(""))) if inside else nfc(path.stem)
    try:
        found = path.stat()
        return Listed(path, key, found.st_size, found.st_mtime_ns)
    except OSError:
        return Listed(path, key, -1, 0)


def nfc(name: str) -> str:
    """A name in composed Unicode with `/` between folders: the same letters may be written in two ways."""
    return unicodedata.normalize("NFC", name.replace(os.sep, "/"))


@dataclass
class Pairing:
    """Which mask files belong to which image."""

    masks: dict[str, list[Listed]] = field(default_factory=dict)
    """Files by the image's key, in order; only images with a mask."""
    orphans: list[Listed] = field(default_factory=list)
    """Mask files of no image."""
    ambiguous: dict[str, list[Listed]] = field(default_factory=dict)
    """Images of one key, by it."""
    in_folders: bool = False
    """Whether masks lie in a folder an image."""
    loose: bool = False
    """Whether names had to be compared without words such as "image" and "mask"."""


def pair(images: Sequence[Listed], masks: Iterable[Listed]) -> Pairing:
    """Find the image of each mask file by its name.

    In this order: the same name; the image's whole name, suffix included (`a.jpg.png`); a folder of the
    image's name (`a/1.png`); the image's name, then `_`, `-`, `.` or a space and more (`a_mask.png`,
    `a-1.png`), where the longest image name counts; the same name without words such as "image" and "mask"
    (`mask_7.png` for `img_7.jpg`), at last also in another folder, where only one image has it.

    >>> image, mask = Listed(Path("i/a.jpg"), "a", 0, 0), Listed(Path("m/a_mask.png"), "a_mask", 0, 0)
    >>> pair([image], [mask]).masks["a"] == [mask]
    True
    """
    found, by_key, by_file = Pairing(), defaultdict(list), {}
    for image in images:
        by_key[image.key].append(image)
        by_file[image.key + image.path.suffix] = image.key
    found.ambiguous = {key: files for key, files in by_key.items() if len(files) > 1}
    core = _cores(by_key)
    rows = defaultdict(list)
    for mask in masks:
        key, folders, loose = _owner(mask.key, by_key, by_file, core)
        if key is None:
            found.orphans.append(mask)
            continue
        rows[key].append(mask)
        found.in_folders |= folders
        found.loose |= loose
    found.masks = {key: rows[key] for key in sorted(rows)}
    return found


def _owner(
    key: str, by_key: Mapping[str, list], by_file: Mapping[str, str], core: Mapping[str, str | None]
) -> tuple[str | None, bool, bool]:
    """Key of a mask's image or None, whether by folder, and whether by the core of its name."""
    if key in by_key:
        return key, False, False
    if key in by_file:
        return by_file[key], False, False
    folder = key
    while "/" in folder:
        folder = folder.rpartition("/")[0]
        if folder in by_key:
            return folder, True, False
    for end in range(len(key) - 1, 0, -1):
        if key[end] == "/":
            break
        if key[end] in "_-. " and key[:end] in by_key:
            return key[:end], False, False
    own = _core(key)
    return core.get(own) or core.get(own.rpartition("/")[2]), False, True


def _cores(keys: Iterable[str]) -> dict[str, str | None]:
    """Keys by their core, and by its last part; None for one that several share."""
    cores: dict[str, str | None] = {}
    for key in keys:
        for core in {_core(key), _core(key).rpartition("/")[2]} - {""}:
            cores[core] = None if core in cores else key
    return cores


def _core(key: str) -> str:
    """A key without words such as "image" and "mask" at its ends.

    >>> _core("a/img_7"), _core("a/7_mask"), _core("7"), _core("imagine")
    ('a/7', 'a/7', '7', 'imagine')
    """
    folder, _, name = key.rpartition("/")
    name = re.sub(rf"(?i)^{WORDS}[_\-. ]+|[_\-. ]+{WORDS}$", "", name)
    return f"{folder}/{name}" if folder else name


def looks_like_mask(key: str) -> bool:
    """Whether a name says that the file is a mask: where images and masks share a folder.

    >>> [looks_like_mask(name) for name in ("a_mask", "b/a-gt-2", "mask_7", "a")]
    [True, True, True, False]
    """
    name = key.rpartition("/")[2]
    word = r"(?:masks?|gt|labels?|segs?|segmentation|instances?|annotations?)"
    return bool(re.search(rf"(?i)(?:[_\-. ]{word}(?:[_\-. ]?\d+)?$)|(?:^{word}[_\-. ])", name))
