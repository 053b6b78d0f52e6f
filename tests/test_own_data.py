"""A user's folder becomes data: every form, every kind of bad input, what is held out, what is reported."""

import json
import shutil
import struct
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from own_project import FORMS, coco_json, micro_masks, save_grey, write_project
from PIL import Image
from segment_anything import sam_model_registry

from sumlib.base.masks import framed_masks
from sumlib.data.content import content_hash
from sumlib.data.images import BadSampleError
from sumlib.model.checkpoint import load_sum, save_sum
from sumlib.model.micro_sam import MICRO_DEPTHS, build_sam_micro
from sumlib.model.sum import Sum
from sumlib.pipeline.own.check import BAD, check
from sumlib.pipeline.own.checkpoints import model_of, recognise
from sumlib.pipeline.own.data import open_own, open_sets
from sumlib.pipeline.own.dataset import survives
from sumlib.pipeline.own.project import read_project
from sumlib.pipeline.own.reading.masks import Rules, Values, kind, read_masks, read_values
from sumlib.pipeline.own.reading.pictures import read_picture
from sumlib.pipeline.own.sheet import painted, write_contact_sheet
from sumlib.pipeline.own.split import hold_out
from sumlib.train.batches import HumanSource

SIZE = (20, 30)


def opened(folder: Path, text: str | None = None):
    """The data of a project, with a `project.yaml` of this text."""
    if text is not None:
        (folder / "project.yaml").write_text(text)
    return open_own(read_project(folder))


def samples(data) -> dict:
    """All good labelled samples by name."""
    return {sample.name: sample for part in (data.train, data.held_out) for sample in part.good()}


def blob(seed: int) -> np.ndarray:
    """A rectangle (20, 30) bool that depends on the seed."""
    y, x = np.random.default_rng(seed).integers(1, 9, 2)
    mask = np.zeros(SIZE, bool)
    mask[y : y + 8, x : x + 12] = True
    return mask


def photo(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Ten small images a0 ... a9 with a mask of 0 and 255 each."""
    root = tmp_path / "tiny"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for number in range(10):
        Image.fromarray(photo(number)).save(root / "images" / f"a{number}.png")
        save_grey(root / "masks" / f"a{number}.png", blob(number) * 255)
    return root


def only(report, kind: str) -> list:
    return [problem for problem in report.problems if problem.kind == kind]


# ---- forms --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_masks_that_were_written(tmp_path, form):
    data = opened(write_project(tmp_path / "p", form, images=6, unlabeled=2))
    level = "salient" if form.startswith("binary") else "entity"
    truth, found = micro_masks(level, 6), samples(data)
    assert len(found) == 6 and not data.problems and len(data.unlabeled) == 2
    assert data.tasks == ({"salient": 1} if level == "salient" else {"entity": 2})
    for name, sample in found.items():
        assert {m.tobytes() for m in sample.masks} == {m.tobytes() for m in truth[f"{name}.jpg"]}
        assert sample.image.shape == (64, 64, 3) and int(sample.task) in data.tasks.values()


def test_what_was_understood_is_said_with_how_to_say_otherwise(tmp_path):
    said = {f: opened(write_project(tmp_path / f, f, images=4)).understood[0] for f in FORMS}
    assert "values 0/1 (4)" in said["binary"] and "`form: labels`" in said["binary"]
    assert "label maps" in said["labels"] and "`form: binary`" in said["labels"]
    assert "palette indices" in said["palette"] and "a folder of masks for each image" in said["folders"]
    assert "several files an image" in said["several"]
    assert "iscrowd = 1 and are taken as masks" in said["crowd"] and "`task: ...`" in said["runs"]


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (0, 38), (0, 65535), (1, 2), (0, 1000)])
def test_masks_of_any_two_values(tmp_path, values):
    array = np.where(blob(1), values[1], values[0]).astype(np.uint16 if max(values) > 255 else np.uint8)
    Image.fromarray(array).save(path := tmp_path / "m.png")
    assert kind(read_values(path)) == "binary"
    assert (read_masks(path, Rules())[0] == blob(1)).all()
    assert (read_masks(path, Rules(foreground=values[0]))[0] == ~blob(1)).all()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp", ".gif", ".jpg", ".pgm"])
def test_masks_of_any_suffix(folder, suffix):
    for path in (folder / "masks").iterdir():
        mask = Image.open(path)
        path.unlink()
        mask.save(path.with_suffix(suffix), **({"lossless": True} if suffix == ".webp" else {}))
    found = samples(opened(folder))
    assert len(found) == 10
    wrong = [(found[f"a{n}"].masks[0] != blob(n)).sum() for n in range(10)]
    assert max(wrong) == 0 or (suffix == ".jpg" and max(wrong) < 20)


def test_more_kinds_of_mask_files(tmp_path):
    """Black and white palettes in any order, floats, transparency, colours, soft edges, more than 8 bits."""
    mask, path = blob(3), tmp_path / "m.png"
    picture = Image.fromarray((~mask).astype(np.uint8))
    picture = Image.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette([255, 255, 255, 0, 0, 0])  # index 0 is white
    picture.save(path)
    assert (read_masks(path, Rules())[0] == mask).all()
    rgba = np.dstack([np.full((*SIZE, 3), 200), mask * 255]).astype(np.uint8)
    Image.fromarray(rgba).save(path)
    assert (read_masks(path, Rules())[0] == mask).all() and read_values(path).scale == "alpha"
    colours = np.zeros((*SIZE, 3), np.uint8)
    colours[mask], colours[-2:] = (200, 0, 0), (0, 0, 200)
    Image.fromarray(colours).save(path)
    assert len(read_masks(path, Rules("labels"))) == 2
    Image.fromarray(mask.astype(np.float32) * 0.9 + 0.05).save(tmp_path / "m.tif")
    assert (read_masks(tmp_path / "m.tif", Rules())[0] == mask).all()
    big = np.where(mask, 40_000, 0).astype(np.int32)
    big[-1] = 70_000
    Image.fromarray(big).save(tmp_path / "m.tif")
    assert [int(m.sum()) for m in read_masks(tmp_path / "m.tif", Rules("labels"))] == [mask.sum(), 30]


def test_soft_masks_label_maps_and_photographs_are_told_apart():
    ramp = np.r_[np.zeros(200), np.linspace(0, 255, 12), np.full(200, 255)].round().astype(int)
    assert kind(Values(np.tile(ramp, (8, 1)), "grey")) == "soft"
    assert kind(Values(np.kron(np.arange(16).reshape(4, 4), np.ones((8, 8), int)), "grey")) == "labels"
    voc = np.kron(np.array([[0, 0, 15, 255]]), np.ones((8, 8), int))
    assert kind(Values(voc, "palette")) == "labels"
    assert kind(Values(photo(0)[..., 0], "grey")) == "picture"


def test_void_of_label_maps_and_labels_to_be_ignored(tmp_path):
    labels = np.kron(np.array([[0, 15, 7, 255]]), np.ones((8, 8), int))
    save_grey(path := tmp_path / "m.png", labels)
    assert len(read_masks(path, Rules("labels"))) == 2  # without 255
    assert len(read_masks(path, Rules("labels", ignore=(15, 99)))) == 2
    assert len(read_masks(path, Rules("labels", ignore=(99,)))) == 3


def test_pieces_can_be_masks_of_their_own(folder):
    for number in range(10):
        save_grey(folder / "masks" / f"a{number}.png", blob(number) | np.eye(20, 30, 20, dtype=bool))
    two = np.zeros(SIZE)
    two[2:6, 2:6] = two[10:16, 20:28] = 1
    save_grey(folder / "masks" / "a0.png", two)
    data = opened(folder, "split: true")
    assert len(samples(data)["a0"].masks) == 2 and data.tasks == {"entity": 2}


NAMES = [
    ("a.jpg", "a.png"), ("a.JPG", "a.PNG"), ("a.jpg", "a_mask.png"), ("a.jpg", "a-1.png"),
    ("a.jpg", "a.jpg.png"), ("img_7.jpg", "mask_7.png"), ("7_im.jpg", "7_gt.png"), ("b/a.jpg", "b/a.png"),
    ("b/a.jpg", "b/a/0.png"), ("é ü.jpg", "é ü.png"), ("a.b.c.jpg", "a.b.c_seg.png"),
    ("写真.jpg", "写真.tif"), ("b/a.jpg", "a_mask.png"), ("img_a.jpg", "c/a.png")
]  # fmt: skip


@pytest.mark.parametrize(("image", "mask"), NAMES)
def test_names_that_belong_together(tmp_path, image, mask):
    for place, name, array in (("images", image, photo(0)), ("masks", mask, blob(0) * np.uint8(255))):
        path = tmp_path / place / (unicodedata.normalize("NFD", name) if place == "masks" else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    Image.fromarray(photo(1)).save((tmp_path / "images" / image).with_name("zzz.png"))
    data = opened(tmp_path)
    assert len(data.train) == 1 and (data.train[0].masks[0] == blob(0)).all()
    assert [p.kind for p in data.problems] == ["without mask"]


def test_the_longest_name_wins_and_orphans_are_named(tmp_path):
    for name in ("1", "1_2"):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(photo(0)).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "masks").mkdir()
    for name in ("1_1", "1_2_1", "1_2_2", "3_1"):
        save_grey(tmp_path / "masks" / f"{name}.png", blob(0))
    data = opened(tmp_path, "held_out: 0")
    assert {s.name: len(s.masks) for s in data.train} == {"1": 1, "1_2": 2}
    assert [p.name for p in data.problems if p.kind == "no image"] == ["3_1"]


def test_images_and_masks_side_by_side(tmp_path):
    for number in range(4):
        Image.fromarray(photo(number)).save(tmp_path / f"{number}.jpg")
        save_grey(tmp_path / f"{number}_mask.png", blob(number))
    data = opened(tmp_path, "images: .\nmasks: .")
    assert len(samples(data)) == 4 and len(data.unlabeled) == 3


# ---- COCO ---------------------------------------------------------------------------------------


def coco(folder: Path, change) -> Path:
    """The tiny project with COCO annotations that ``change`` has changed."""
    scenes = [(f"a{n}.png", blob(n)[None]) for n in range(10)]
    content = coco_json("rle", scenes)
    change(content)
    shutil.rmtree(folder / "masks", ignore_errors=True)
    (folder / "a.json").write_text(json.dumps(content))
    return folder


def test_polygons_and_file_names_with_folders(folder):
    def change(content):
        for number, annotation in enumerate(content["annotations"]):
            annotation["segmentation"] = [[2, 3, 12, 3, 12, 9, 2, 9]]
            content["images"][number]["file_name"] = (
                f"images/a{number}.png",
                f"D:\\photos\\a{number}.png",
                f"train2017/a{number}.jpg",
            )[number % 3]

    found = samples(opened(coco(folder, change)))
    assert sorted(found) == [f"a{n}" for n in range(10)]
    assert found["a0"].masks[0, 3:9, 2:12].all() and found["a0"].masks.sum() == 60


def test_bad_annotations_are_left_out_one_by_one(folder):
    def change(content):
        notes = content["annotations"]
        notes[0]["image_id"] = 77
        notes[1]["segmentation"]["counts"] = notes[1]["segmentation"]["counts"][:-3]
        notes[2]["segmentation"] = [[100, 100, 120, 100, 120, 120]]
        notes[3]["segmentation"] = []
        notes[4]["segmentation"] = [[-9, 2, 12, 2, 12, 9, -9, 9]]
        notes[5]["segmentation"] = [[0, 0, 1e9, 0, 5, 5]]
        notes[6]["segmentation"] = "polygon"
        content["images"][7]["height"] = 21
        content["images"][8]["file_name"] = "gone.png"
        notes.append({**notes[9], "segmentation": [[1, 1, 2, 1]], "id": 99})

    report = check(coco(folder, change), write=False)
    kinds = {problem.kind for problem in report.problems}
    assert {"dangling", "rle", "outside", "empty", "beyond", "size", "no image"} <= kinds
    assert (report.images, report.masks) == (2, 2)  # a4, cut at the edge, and a9
    assert report.status == BAD and report.share == pytest.approx(9 / 11)
    assert only(report, "dangling")[0].reason.startswith("annotation 1 is of image 77")
    assert "20 x 30" in only(report, "outside")[0].reason
    assert len(samples(report.data)["a9"].masks) == 1


@pytest.mark.parametrize("place", ["masks", "images"])
def test_a_folder_with_a_json_means_the_json(folder, place):
    coco(folder, lambda content: None)
    (folder / place).mkdir(exist_ok=True)
    (folder / "a.json").rename(folder / place / "_annotations.coco.json")
    data = opened(folder, f"masks: {place}")
    assert len(samples(data)) == 10 and "COCO annotations" in data.understood[0]
    assert data.tasks == {"entity": 2}
    shutil.rmtree(folder / "masks", ignore_errors=True)
    (folder / "masks").mkdir()
    for name in ("train.json", "val.json"):
        (folder / "masks" / name).write_text("{}")
    with pytest.raises(ValueError, match=r"it has train\.json, val\.json: say which with `masks:`"):
        opened(folder, "masks: masks")


@pytest.mark.parametrize(("share", "text", "count"), [(3, "", 7), (3, "crowd: masks", 10), (9, "", 10)])
def test_crowds(folder, share, text, count):
    def change(content):
        for annotation in content["annotations"][:share]:
            annotation["iscrowd"] = 1

    assert len(samples(opened(coco(folder, change), text))) == count


@pytest.mark.parametrize("text", ["", "[]", '{"images": []}', '{"images": [], "annotations": {}}', "{"])
def test_no_coco_file(folder, text):
    coco(folder, lambda content: None)
    (folder / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json: is no .*export it"):
        opened(folder)
    report = check(folder, write=False)
    assert report.status == BAD and "CANNOT RUN" in report.text()


# ---- images -------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("drawn", ["upright", "stored"])
@pytest.mark.parametrize("form", ["files", "coco"])
def test_exif_rotation(tmp_path, orientation, drawn, form):
    """A mask of the upright size is taken as it is, one of the stored size is turned as the image is."""
    stored = np.zeros((20, 30, 3), np.uint8)
    stored[4:9, 3:17] = 255
    (tmp_path / "images").mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "images" / "a.png", exif=exif)
    Image.fromarray(photo(0)).save(tmp_path / "images" / "b.png")
    upright = read_picture(tmp_path / "images" / "a.png").pixels[..., 0] > 128
    mask = upright if drawn == "upright" or orientation < 5 else stored[..., 0] > 128
    if form == "files":
        (tmp_path / "masks").mkdir()
        save_grey(tmp_path / "masks" / "a.png", mask * 255)
    else:
        (tmp_path / "a.json").write_text(json.dumps(coco_json("rle", [("a.png", mask[None])])))
    data = opened(tmp_path)
    assert (data.train[0].masks[0] == upright).all()
    notes = [note[0] for note in data.train.facts.of(data.train.entries)[0]["notes"]]
    wanted = ["turned"] if drawn == "stored" and orientation >= 5 else []
    assert notes == (wanted or (["turn unknown"] if 2 <= orientation < 5 else []))


def test_sixteen_bits_are_stretched_and_not_cut(tmp_path):
    dark = np.linspace(0, 4000, 600).reshape(SIZE).astype(np.uint16)
    Image.fromarray(dark).save(path := tmp_path / "a.png")
    image = read_picture(path).pixels
    assert image.min() == 0 and image.max() == 255 and 100 < image.mean() < 155
    assert read_picture(path, "type").pixels.max() == 16  # 4000 of 65535
    assert read_picture(path).notes[0][0] == "deep"
    Image.fromarray(dark.astype(np.float32) - 1000).save(tmp_path / "a.tif")
    assert np.abs(read_picture(tmp_path / "a.tif").pixels.astype(int) - image).max() <= 1
    flat = np.full(SIZE, 700, np.uint16)
    Image.fromarray(flat).save(path)
    assert read_picture(path).pixels.max() == 0


def test_sixteen_bit_colours(tmp_path):
    import cv2

    rgb = np.zeros((*SIZE, 3), np.uint16)
    rgb[..., 0], rgb[:10, :, 2] = 3000, 1500
    cv2.imwrite(str(path := tmp_path / "a.png"), rgb[..., ::-1])
    image = read_picture(path).pixels
    assert (image[0, 0] == [255, 0, 128]).all() and (image[-1, 0] == [255, 0, 0]).all()


def tiff(path: Path, channels: int) -> None:
    """An uncompressed 8-bit TIFF of 2 x 2 pixels with any number of channels."""
    data = bytes(range(4 * channels))
    tags = [(256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, 1, 8), (277, 3, 1, channels), (278, 3, 1, 2), (279, 4, 1, len(data))]
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + table + bytes(4))


def test_images_that_are_refused_with_the_remedy(tmp_path):
    tiff(path := tmp_path / "a.tif", 7)
    with pytest.raises(BadSampleError, match=r"a\.tif: has 7 channels; choose three"):
        read_picture(path)
    pages = [Image.fromarray(photo(n)) for n in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with pytest.raises(BadSampleError, match="holds 3 pages; save each"):
        read_picture(path)
    for content in (b"", b"II*\0", b"no image", path.read_bytes()[:40]):
        path.write_bytes(content)
        with pytest.raises(BadSampleError, match=r"a\.tif: .*(truncated|no image)"):
            read_picture(path)
    Image.fromarray(np.full(SIZE, np.nan, np.float32)).save(path)
    with pytest.raises(BadSampleError, match="not finite"):
        read_picture(path)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_images_of_any_mode_become_rgb(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.fromarray(photo(0)).convert(mode).save(path)
    picture = read_picture(path)
    assert picture.pixels.shape == (*SIZE, 3) and picture.pixels.dtype == np.uint8
    assert [note[0] for note in picture.notes] == (["alpha"] if "A" in mode else [])


# ---- bad input ----------------------------------------------------------------------------------


def spoil(folder: Path) -> dict[str, int]:
    """Make nine of ten samples wrong in different ways; how many problems there are of each kind."""
    masks, images = folder / "masks", folder / "images"
    save_grey(masks / "a0.png", np.zeros(SIZE))
    save_grey(masks / "a1.png", np.full(SIZE, 255))
    save_grey(masks / "a2.png", blob(2)[:-1])
    save_grey(masks / "a3.png", blob(3) * 9 + np.eye(20, 30) * 4)
    Image.fromarray(photo(4)).save(masks / "a4.png")
    (masks / "a5.png").write_bytes((masks / "a5.png").read_bytes()[:40])
    (images / "a6.png").unlink()
    (masks / "a7.png").unlink()
    Image.fromarray(photo(8)).save(images / "a8.jpg")
    (images / "b.heic").write_bytes(b"")
    return {
        "empty": 1, "whole": 1, "size": 1, "values": 2, "unreadable": 1, "no image": 1, "without mask": 1,
        "duplicate": 1, "foreign": 1,
    }  # fmt: skip


def test_bad_files_are_left_out_and_listed_by_kind(folder):
    wanted = spoil(folder)
    report = check(folder)
    found = {name: len(only(report, name)) for name in wanted}
    assert found == wanted
    assert list(samples(report.data)) == ["a9"] and report.masks == 1 and report.bad == 8
    text = report.text()
    assert "TOO MUCH IS BAD: 8 of 9 masks" in text and report.status == BAD
    assert "masks/a2.png: mask is 19 x 30, but the image" in text and "`form: labels`" in text
    assert "a8.jpg and a8.png share a name" in text or "a8.png and a8.jpg share a name" in text
    rows = report.listing.read_text().splitlines()
    assert len(rows) == len(report.problems) + 1 and rows[0] == "left_out,kind,name,file,reason"
    assert report.sheet.is_file() and (folder / "check" / "report.txt").read_text() == text


def test_the_share_of_bad_masks_decides_the_exit_status(folder):
    save_grey(folder / "masks" / "a0.png", np.zeros(SIZE))
    assert check(folder, write=False).status == 0  # 1 of 10, and 0.1 is allowed
    save_grey(folder / "masks" / "a1.png", np.zeros(SIZE))
    report = check(folder, write=False)
    assert report.status == BAD and "2 of 10 masks (20.0%)" in report.text()
    (folder / "project.yaml").write_text("bad_share: 0.2")
    report = check(folder, write=False)
    assert report.status == 0 and "the others are kept" in report.text()


def test_one_bad_file_of_several_leaves_the_others(tmp_path):
    folder = write_project(tmp_path / "p", "several", images=3)
    first = sorted((folder / "masks").iterdir())[0]
    save_grey(first, np.zeros((64, 64)))
    report = check(folder, write=False)
    assert report.images == 3 and report.bad == 1
    assert only(report, "empty")[0].name == f"00000#{first.name}"


def test_nothing_belongs_together(tmp_path):
    for place, name in (("images", "x"), ("masks", "y")):
        (tmp_path / place).mkdir()
        save_grey(tmp_path / place / f"{name}.png", blob(0))
    with pytest.raises(ValueError, match=r"an image is called x\.png, a mask y\.png; give both one name"):
        opened(tmp_path)


def test_worth_knowing(folder):
    tiny = np.zeros((2000, 3000), bool)
    tiny[8, 8] = True
    Image.fromarray(photo(0, tiny.shape)).save(folder / "images" / "a0.png")
    save_grey(folder / "masks" / "a0.png", tiny)
    save_grey(folder / "masks" / "a1.png", np.arange(600).reshape(SIZE) > 5)
    (folder / "images" / "a2.png").rename(folder / "images" / "é 2.png")
    (folder / "masks" / "a2.png").rename(folder / "masks" / "é 2.png")
    report = check(folder, write=False)
    assert {p.kind for p in report.problems} == {"tiny", "large", "spaced name"} and report.status == 0
    assert "1 of 1 masks vanish at 1024 pixels" in only(report, "tiny")[0].reason
    assert "2000 x 3000 (1)" in report.text() and "20 x 30 (9)" in report.text()


def test_survival_is_that_of_training():
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width, side = rng.integers(3, 300, 3)
        mask = np.zeros((height, width), bool)
        y, x = rng.integers(0, height), rng.integers(0, width)
        mask[y : y + rng.integers(1, 6), x : x + rng.integers(1, 6)] = True
        assert survives(mask, int(side)) == framed_masks(mask[None], int(side))[1][0]


@pytest.mark.parametrize("seed", range(6))
def test_damaged_files_never_stop_the_check(folder, seed):
    """Files cut and with bytes changed: every one is read or listed, and the count is whole."""
    rng = np.random.default_rng(seed)
    suffixes = [".png", ".tif", ".jpg", ".bmp", ".webp", ".gif"]
    for number in range(10):
        for place in ("images", "masks"):
            path = folder / place / f"a{number}.png"
            new = path.with_suffix(suffixes[(seed + number) % 6])
            with Image.open(path) as picture:
                picture.load()
            path.unlink()
            picture.save(new)
            content = bytearray(new.read_bytes())
            for _ in range(rng.integers(0, 3)):
                content[rng.integers(0, len(content))] = rng.integers(0, 256)
            if rng.random() < 0.3:
                content = content[: rng.integers(0, len(content))]
            new.write_bytes(bytes(content))
    (folder / "project.yaml").write_text("form: binary")
    report = check(folder, write=False)
    assert report.masks + report.bad == 10 and all(problem.reason for problem in report.problems)


@pytest.mark.parametrize("seed", range(12))
def test_damaged_annotations_never_stop_the_check(folder, seed):
    """Values of a COCO JSON replaced by other ones: each annotation is read or listed."""
    rng = np.random.default_rng(seed)
    odd = [None, -1, 0, 3.5, "", "a1.png", [], {}, [[]], [[1, 2]], [[1, 2, "3", 4, 5, 6]], True, 10**20]

    def spoiled(value):
        if rng.random() < 0.03:
            return odd[rng.integers(len(odd))]
        if isinstance(value, dict):
            return {key: spoiled(item) for key, item in value.items()}
        return [spoiled(item) for item in value] if isinstance(value, list) else value

    def change(content):
        content["images"] = [spoiled(record) for record in content["images"]]
        content["annotations"] = [spoiled(record) for record in content["annotations"]]

    report = check(coco(folder, change), write=False)
    assert report.fatal or (report.masks and all(problem.reason for problem in report.problems))


# ---- what is held out ---------------------------------------------------------------------------


def test_the_split_is_by_names_and_repeats(tmp_path):
    first = opened(write_project(tmp_path / "one", images=20))
    second = opened(write_project(tmp_path / "two", images=20))
    assert first.held_out.names == second.held_out.names and len(first.held_out) == 4
    assert not set(first.held_out.names) & set(first.train.names)
    other = opened(tmp_path / "two", "seed: 1")
    assert other.held_out.names != first.held_out.names and len(other.held_out) == 4
    assert len(opened(tmp_path / "two", "held_out: 0").held_out) == 0


def test_a_new_image_changes_little():
    names = {f"image {n}": {1} for n in range(200)}
    before, after = hold_out(names, 0.2, 0, {}), hold_out(names | {"new": {1}}, 0.2, 0, {})
    assert len(before) == 40 and len(before ^ after) <= 2


def test_every_task_has_held_out_and_trained_images():
    tasks = {f"a{n}": {1} for n in range(30)} | {f"b{n}": {2} for n in range(3)} | {"c": {3}}
    for seed in range(30):
        held = hold_out(tasks, 0.1, seed, {})
        assert sum(name[0] == "a" for name in held) == 3 and sum(name[0] == "b" for name in held) == 1
        assert "c" not in held


def test_the_same_picture_is_never_on_both_sides(folder):
    for number in range(10):
        for place in ("images", "masks"):
            path = folder / place / f"a{number}.png"
            shutil.copy(path, path.with_name(f"copy of {number}.png"))
    data = opened(folder, "held_out: 0.3")
    held = {name[-1] for name in data.held_out.names}
    assert len(data.held_out) == 6 and not held & {name[-1] for name in data.train.names}
    assert not held & {name[-1] for name in data.unlabeled.names}
    named = opened(folder, "held_out: [a3]")
    assert named.held_out.names == ["a3", "copy of 3"]


def test_unlabeled_images_that_are_held_out_are_not_used(folder):
    others = folder / "unlabeled"
    others.mkdir()
    held = opened(folder).held_out.names
    shutil.copy(folder / "images" / f"{held[0]}.png", others / "same bytes.png")
    smooth = Image.open(folder / "images" / f"{held[1]}.png")
    smooth.save(others / f"{held[1]}.bmp")  # other bytes, the same picture and name
    Image.fromarray(photo(77)).save(others / f"{held[0]}.png")  # another picture of that name
    report = check(folder, write=False)
    assert report.data.unlabeled.names == [held[0]] and report.unlabeled == 1
    assert len(only(report, "held out")) == 2
    assert "2 unlabeled images that are held-out images" in report.text()


def test_without_unlabeled_images_the_others_serve(folder):
    (folder / "masks" / "a0.png").unlink()
    data = opened(folder)
    assert set(data.unlabeled.names) == {f"a{n}" for n in range(10)} - set(data.held_out.names)
    assert data.unlabeled[0].masks.shape == (0, *SIZE)
    (folder / "unlabeled").mkdir()
    data = opened(folder)
    assert len(data.unlabeled) == 8 and any(p.kind == "unlabeled" for p in data.problems)


def test_held_out_names_and_folders(folder, tmp_path):
    assert opened(folder, "held_out: [a3, a5.png]").held_out.names == ["a3", "a5"]
    with pytest.raises(
        ValueError, match=r"held_out names a33, which is no image with a mask; did you mean a3"
    ):
        opened(folder, "held_out: [a33]")
    other = write_project(tmp_path / "other", images=3, unlabeled=0, checkpoint=False)
    for place in ("images", "masks"):
        shutil.copy(folder / place / "a1.png", other / place / "a1.png")
    data = opened(folder, "held_out: ../other\nevaluate: {more: ../other}\ntask: leaf")
    assert len(data.held_out) == 4 and len(data.train) == 9 and "a1" not in data.train.names
    assert {int(sample.task) for sample in data.held_out} == {4} and data.tasks == {"leaf": 4}
    sets = open_sets(read_project(folder), data.tasks)
    assert list(sets) == ["more"] and len(sets["more"].good()) == 4
    report = check(folder, write=False)
    assert "also scored: more (4 images)" in report.text() and report.status == 0
    for path in (other / "masks").iterdir():
        path.unlink()
    (folder / "project.yaml").write_text("evaluate: {more: ../other}\ninit_from: earlier")
    fatal = check(folder, write=False).fatal
    assert (
        "correct init_from" in fatal[0] and "holds no mask that can be read; put the masks there" in fatal[1]
    )


# ---- tasks --------------------------------------------------------------------------------------


def test_masks_of_several_tasks(folder):
    (folder / "holes").mkdir()
    for number in range(0, 10, 2):
        save_grey(folder / "holes" / f"a{number}.png", blob(number + 50))
    data = opened(folder, "masks: {salient: masks, hole: holes}")
    assert data.tasks == {"salient": 1, "hole": 4} and len(data.train) + len(data.held_out) == 15
    by_image = {name.split(" (")[0] for name in data.held_out.names}
    assert not by_image & {name.split(" (")[0] for name in data.train.names}
    parts = data.by_task(data.train)
    assert set(parts) == {"salient", "hole"} and parts["hole"].task == 4
    assert all(int(sample.task) == 4 and "(hole)" in sample.name for sample in parts["hole"].good())
    assert data.train.task == 0 and torch.full((2,), parts["hole"][0].task).tolist() == [4, 4]


def test_a_task_of_the_users_own_reaches_training_and_the_file(folder, tmp_path):
    data = opened(folder, "task: leaf")
    source, model = HumanSource([data.train]), Sum(build_sam_micro(depth=2), num_tasks=5)
    batch = source.draw(model, 3, torch.Generator().manual_seed(0))
    assert batch.task.tolist() == [4, 4, 4] and batch.target.any()
    assert model.task_prompt(batch.task).shape == (3, 128)
    assert content_hash(source.datasets[0]) != content_hash(opened(folder, "task: part").train.good())
    save_sum(tmp_path / "sum.safetensors", model, {"model_type": "micro_b"})
    assert load_sum(tmp_path / "sum.safetensors").task_vectors.shape == (5, 128)


# ---- checking -----------------------------------------------------------------------------------


def test_a_project_is_read_once(folder, monkeypatch):
    assert check(folder, write=False).status == 0
    import sumlib.pipeline.own.dataset as module

    read, count = module.read_picture, []
    monkeypatch.setattr(module, "read_picture", lambda *given: count.append(1) or read(*given))
    assert check(folder, write=False).masks == 10 and not count
    data = opened(folder)
    assert len(data.train.good()) == 8 and not count
    save_grey(folder / "masks" / "a0.png", np.zeros(SIZE))
    report = check(folder, write=False)
    assert report.bad == 1 and len(count) == 1  # the changed one alone


def test_many_files_open_in_seconds(tmp_path):
    folder = write_project(tmp_path / "p", images=3, unlabeled=1)
    template = next((folder / "unlabeled").iterdir())
    for number in range(4000):
        (folder / "unlabeled" / f"{number}.jpg").hardlink_to(template)
    start = time.process_time()
    data = opened(folder)
    assert time.process_time() - start < 4 and len(data.unlabeled) == 4001


def test_the_plan_and_the_checkpoint(tmp_path):
    folder = write_project(tmp_path / "p", images=5, unlabeled=3)
    report = check(folder, write=False)
    line = (
        "5 images, 5 masks (1 images held out), 3 unlabeled; plan: micro from sam.safetensors, task salient"
    )
    assert report.plan.startswith(line) and report.status == 0 and line in report.text()
    assert (report.checkpoint.model, report.checkpoint.side, report.checkpoint.kind) == ("micro", 64, "SAM")
    (folder / "project.yaml").write_text("checkpoint: nowhere.pth")
    assert "there is no such file; SAM's own are" in check(folder, write=False).fatal[0]
    (folder / "project.yaml").unlink()
    assert "no checkpoint yet" in check(folder, write=False).plan


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"vision_encoder.pos_embed": (1, 64, 64, 768)}, "Hugging Face"),
        ({"image_encoder.layers.0.weight": (3,)}, "MobileSAM"),
        ({"mask_decoder.hf_token.weight": (1, 256)}, "HQ-SAM in its authors' format"),
        ({"image_encoder.pos_embed": (1, 64, 64, 99)}, "width 99 with 0 blocks, as none of micro"),
        ({"fc.weight": (3, 3)}, "holds no SAM"),
    ],
)
def test_checkpoints_of_another_architecture(tmp_path, state, words):
    tensors = {key: torch.zeros(shape) for key, shape in state.items()}
    torch.save(tensors, path := tmp_path / "a.pth")
    assert words in recognise(path).problem
    torch.save({"model": {"image_encoder.pos_embed": torch.zeros(1, 4, 4, 8)}}, path)
    assert "under the name 'model'" in recognise(path).problem
    path.write_bytes(b"damaged")
    assert "no checkpoint" in recognise(path).problem


@pytest.mark.parametrize("name", ["vit_b", "micro", "micro_l", "micro_b"])
def test_models_are_known_by_their_shapes(name):
    with torch.device("meta"):
        sam = sam_model_registry[name]() if name == "vit_b" else build_sam_micro(depth=MICRO_DEPTHS[name])
    shapes = {key: tuple(value.shape) for key, value in sam.state_dict().items()}
    found = model_of(Path("sam.pth"), shapes)
    side = sam.image_encoder.img_size
    assert (found.model, found.side, found.kind, found.problem) == (name, side, "SAM", "")
    tuned = {f"sam.{key}": shape for key, shape in shapes.items()} | {"task_prompt.weight": (6, 256)}
    found = model_of(Path("sum.safetensors"), tuned)
    assert (found.model, found.kind, found.tasks) == (name, "SUM", 6)
    encoder = {key: shape for key, shape in shapes.items() if key.startswith("image_encoder.")}
    assert "no mask decoder" in model_of(Path("a.pth"), encoder).problem


def test_a_checkpoint_that_is_not_the_named_model(tmp_path):
    folder = write_project(tmp_path / "p", images=5)
    text = (folder / "project.yaml").read_text()
    (folder / "project.yaml").write_text(f"{text}model: vit_b\n")
    report = check(folder, write=False)
    assert report.status == BAD and "holds a micro, but the project says model: vit_b" in report.fatal[0]


def test_a_full_disk_is_told_before_the_start(folder, monkeypatch):
    usage = shutil._ntuple_diskusage(10, 9, 1)
    monkeypatch.setattr("sumlib.pipeline.own.check.shutil.disk_usage", lambda path: usage)
    report = check(folder, write=False)
    assert report.status == BAD and "move the project to a larger disk" in report.fatal[0]


def test_the_contact_sheet_shows_masks_in_their_place(folder):
    data = opened(folder)
    path = write_contact_sheet(data, folder / "sheet.png", count=6)
    with Image.open(path) as picture:
        assert picture.size[0] > 600 and picture.size[1] > 400
    sample = data.train[0]
    picture = painted(sample)
    mask = np.kron(sample.masks[0], np.ones((12, 12), bool))
    outside = np.kron(sample.image, np.ones((12, 12, 1), np.uint8))
    away = ~np.kron(blob_with_rim(sample.masks[0]), np.ones((12, 12), bool))
    assert picture.shape == (240, 360, 3) and (picture[away] == outside[away]).all()
    assert (picture[mask] != outside[mask]).any(-1).mean() > 0.9


def blob_with_rim(mask: np.ndarray) -> np.ndarray:
    """The mask and its neighbours."""
    padded = np.pad(mask, 1)
    return sum(padded[y : y + 20, x : x + 30] for y in range(3) for x in range(3)) > 0
