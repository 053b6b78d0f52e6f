"""Bad data gives one message that names the file and the remedy; bad samples are listed, counted and left
out."""

import gzip
import json
import os
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image
from scenes import SCENES

from sumlib.data.images import BadSampleError, is_turned, read_image, read_labels, read_mask
from sumlib.data.layouts.additional import open_additional
from sumlib.data.registry import open_dataset
from sumlib.micro.export import write_dataset

IMAGE, MASK = "test/COIFT/images/00001.jpg", "test/COIFT/masks/00001.png"


@pytest.fixture
def root(tmp_path):
    write_dataset("COIFT", tmp_path, SCENES[:3])
    return tmp_path


def expect_bad(root, name, bad, *words):
    """Sample `bad` of data set `name` raises one message with `words`, is listed, counted and left out."""
    dataset = open_dataset(name, root)
    total = len(dataset)
    with pytest.raises(BadSampleError) as caught:
        dataset[dataset.names.index(bad)]
    message = str(caught.value)
    assert all(str(word) in message for word in words), message
    assert "\n" not in message
    listed = dataset.check()
    assert [b.name for b in listed] == [bad] and f"{listed[0].path}: {listed[0].reason}" == message
    good = dataset.good()
    assert len(good) == total - 1 and bad not in good.names and good.bad == listed
    assert "1 bad samples" in good.report() and str(listed[0].path) in good.report()
    assert [sample.name for sample in good] == good.names


def save_mask(path, values):
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def test_missing_image(root):
    (root / IMAGE).unlink()
    expect_bad(root, "COIFT", "00001", root / IMAGE, root / MASK, "missing", "restore")


def test_missing_mask(root):
    (root / MASK).unlink()
    expect_bad(root, "COIFT", "00001", root / IMAGE, root / MASK, "missing", "restore")


@pytest.mark.parametrize("keep", [0, 20, 300, -40])
@pytest.mark.parametrize("file", [IMAGE, MASK])
def test_truncated(root, file, keep):
    data = (root / file).read_bytes()
    (root / file).write_bytes(data[: min(keep, len(data) // 2)])
    expect_bad(root, "COIFT", "00001", root / file, "truncated", "download")


def test_other_size(root):
    save_mask(root / MASK, np.full((30, 40), 255))
    expect_bad(root, "COIFT", "00001", root / IMAGE, root / MASK, "30 x 40", "24 x 32")


def test_exif_turned(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(SCENES[1].image).save(root / IMAGE, exif=exif)  # upright now 32 x 24, the mask 24 x 32
    expect_bad(root, "COIFT", "00001", root / IMAGE, root / MASK, "EXIF", "24 x 32", "32 x 24")
    save_mask(root / MASK, np.rot90(SCENES[1].salient, -1) * 255)
    assert open_dataset("COIFT", root).check() == []


def test_empty_mask(root):
    save_mask(root / MASK, np.zeros((24, 32)))
    expect_bad(root, "COIFT", "00001", root / MASK, "no foreground", "remove")


def test_zero_one_mask(root):
    save_mask(root / MASK, SCENES[1].salient)
    expect_bad(root, "COIFT", "00001", root / MASK, "0/1", "0/255", "re-save")
    assert (read_mask(root / MASK) == SCENES[1].salient).all()  # detected where no scale is stated


def test_unknown_scale_and_colours(root):
    save_mask(root / MASK, SCENES[1].salient * 38)
    with pytest.raises(BadSampleError, match="neither 0/1 nor 0/255"):
        read_mask(root / MASK)
    expect_bad(root, "COIFT", "00001", root / MASK, "38", "re-save")
    save_mask(root / MASK, SCENES[1].image + 1)
    for read in (read_mask, read_labels):
        with pytest.raises(BadSampleError, match="colours"):
            read(root / MASK)


def test_sa1b_image(tmp_path):
    write_dataset("SA-1B", tmp_path, SCENES[:3])
    path = tmp_path / "SA-1B/sa_000000/sa_1.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    expect_bad(tmp_path, "SA-1B", "sa_1", path, "truncated")
    path.rename(path.with_suffix(".json"))  # described, but not there
    expect_bad(tmp_path, "SA-1B", "sa_1", path, "missing")


@pytest.mark.parametrize("file", [IMAGE, MASK])
def test_a_pipe_or_a_device_is_refused_at_once(root, file):
    (root / file).unlink()
    os.mkfifo(root / file)
    for read in (read_image, read_mask, read_labels):
        with pytest.raises(BadSampleError, match="no regular file"):
            read(root / file)
    assert not is_turned(root / file)
    expect_bad(root, "COIFT", "00001", root / file, "missing")
    (root / file).unlink()
    (root / file).symlink_to("/dev/zero")
    with pytest.raises(BadSampleError, match="no regular file"):
        read_image(root / file)


@pytest.mark.parametrize("mode", ["w:", "w:gz"])
def test_a_bomb_in_an_archive_is_refused_before_it_is_unpacked(tmp_path, mode):
    (tmp_path / "SA-1B").mkdir()
    member = tarfile.TarInfo("sa_1.jpg")
    member.size = 2**40
    archive = tmp_path / "SA-1B/sa_000000.tar"
    archive.write_bytes(member.tobuf() if mode == "w:" else gzip.compress(member.tobuf() + bytes(2**20)))
    with pytest.raises(ValueError, match="sa_000000.tar: .*sa_1.jpg has 1099511627776 bytes"):
        open_dataset("SA-1B", tmp_path)


GREY = np.linspace(0, 1, 256).reshape(16, 16)


@pytest.mark.parametrize(
    ("values", "suffix"),
    [
        ((GREY * 65535).round().astype(np.uint16), ".png"),
        ((GREY * 65535).round().astype(np.uint16), ".tif"),
        (GREY.astype(np.float32), ".tif"),
        ((GREY * 255).astype(np.float32), ".tif"),
    ],
)
def test_deep_pictures_are_scaled_by_the_range_of_their_type(tmp_path, values, suffix):
    path = tmp_path / f"deep{suffix}"
    Image.fromarray(values).save(path)
    assert (read_image(path) == np.arange(256).reshape(16, 16, 1)).all()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((4, 4), 70000, np.int32), "32-bit integers"),
        (np.full((4, 4), 9, np.int32), "32-bit integers"),
        (np.full((4, 4), -9, np.int32), "negative"),
        (np.full((4, 4), 300.0, np.float32), "neither"),
        (np.full((4, 4), -1.0, np.float32), "negative"),
        (np.full((4, 4), np.nan, np.float32), "not finite"),
        (np.full((4, 4), np.inf, np.float32), "not finite"),
    ],
)
def test_pictures_whose_range_cannot_be_told_are_refused(tmp_path, values, words):
    path = tmp_path / "deep.tif"
    Image.fromarray(values).save(path)
    with pytest.raises(BadSampleError, match=f"deep.tif: .*{words}.*save"):
        read_image(path)


def test_masks_and_labels_of_floats(tmp_path):
    path = tmp_path / "mask.tif"
    for values in (GREY, GREY * 255):
        Image.fromarray(values.astype(np.float32)).save(path)
        assert (read_mask(path, 128) == (GREY * 255 > 128.001)).all()
    Image.fromarray(np.array([[0, np.nan]], np.float32)).save(path)
    for read in (read_mask, read_labels):
        with pytest.raises(BadSampleError, match="not finite"):
            read(path)
    Image.fromarray(np.array([[0, 1.5]], np.float32)).save(path)
    with pytest.raises(BadSampleError, match="not whole numbers"):
        read_labels(path)
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(path)
    with pytest.raises(BadSampleError, match="more than 16 bits"):
        read_mask(path)
    assert read_labels(path).tolist() == [[0, 70000]]


def test_cmyk_follows_its_colour_profile_or_the_plain_formula(tmp_path):
    path = tmp_path / "ink.jpg"
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(path, quality=100)
    assert np.abs(read_image(path).astype(int) - [255, 0, 0]).max() < 4
    Image.new("CMYK", (4, 4)).save(path, icc_profile=b"no profile")
    with pytest.raises(
        BadSampleError, match="ink.jpg: colours of mode CMYK cannot be converted.*save the image as RGB"
    ):
        read_image(path)
    Image.new("CMYK", (4, 4)).save(path)
    with pytest.raises(BadSampleError, match="colour picture"):
        read_labels(path)


def test_a_picture_in_place_of_a_label_map_is_refused(tmp_path):
    write_dataset("EasyPortrait", tmp_path, SCENES[:1])
    path = tmp_path / "additional/IBD"
    (path / "images").mkdir(parents=True)
    (path / "masks").mkdir()
    values = np.arange(80 * 80, dtype=np.uint16).reshape(80, 80)
    Image.fromarray(np.zeros((80, 80, 3), np.uint8)).save(path / "images/a.png")
    Image.fromarray(values).save(path / "masks/a.png")
    with pytest.raises(BadSampleError, match="holds 6399 labels"):
        open_additional("IBD", tmp_path)[0]


def test_sa1b_archive(tmp_path):
    (tmp_path / "SA-1B").mkdir()
    archive = tmp_path / "SA-1B/sa_000000.tar"
    archive.write_bytes(b"\x1f\x8b not gzip")
    with pytest.raises(ValueError, match="sa_000000.tar: .*download it again"):
        open_dataset("SA-1B", tmp_path)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_coco_empty_masks_are_left_out_and_listed(tmp_path):
    write_dataset("PACO", tmp_path, SCENES[:3])
    path = tmp_path / "test/PACO/paco_lvis_v1_val.json"

    def empty_one(content):
        part = next(a for a in content["annotations"] if a["image_id"] == 2 and a["id"] != a["obj_ann_id"])
        part["segmentation"] = []

    edit(path, empty_one)
    dataset = open_dataset("PACO", tmp_path)
    (bad,) = dataset.check()
    assert bad.path == path and bad.name.startswith("000000000001#") and "empty" in bad.reason
    assert [len(sample.masks) for sample in dataset.good()] == [5, 4, 5]
    assert "1 single masks left out" in dataset.report()
    edit(path, lambda c: [a.update(segmentation=[]) for a in c["annotations"] if a["image_id"] == 2])
    expect_bad(
        tmp_path, "PACO", "000000000001", path, "no mask with foreground", "000000000001.jpg", "remove"
    )


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [24, 32], "counts": [5, 5]},
        {"size": [24, 32], "counts": "zzz~"},
        {"size": [32, 24], "counts": [768]},
        {"counts": [768]},
        {"size": [24, 32], "counts": [700, 68.0]},
        {"size": [24, 32], "counts": "zzz"},
        {"size": [10**6, 10**6], "counts": [10**12]},
        [[1, 1, 9, 1, float("nan"), 9]],
        [[1, 1, 9, 1, float("inf"), 9]],
        [[1, 1, 9, 1, 1e9, 9]],
        [[1, 1, 9, 1, 2**31, 9]],
        [[1, 1, 9, 1, 2**63, 9]],
        [[1, 1, 9, 1, "9", 9]],
        [[1, 1, 9, 1, 9]],
        [1, 1, 9, 1, 9, 9],
        "polygon",
        7,
    ],
)
def test_coco_broken_segmentation(tmp_path, segmentation):
    write_dataset("dev", tmp_path, SCENES[:2])
    path = tmp_path / "dev/entity.json"
    edit(path, lambda c: c["annotations"][0].update(segmentation=segmentation))
    expect_bad(tmp_path, "dev-entity", "00000", path, "dev/images/00000.jpg", "annotation 1", "restore")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("images"), ["no list of images"]),
        (lambda c: c.update(annotations={}), ["no list of annotations"]),
        (lambda c: c["images"][1].pop("file_name"), ["images[1]", "no file_name"]),
        (lambda c: c["images"][1].pop("id"), ["images[1]", "no id"]),
        (lambda c: c["images"][1].update(file_name=5), ["images[1]", "file_name is no text"]),
        (lambda c: c["images"][1].update(id=[1]), ["images[1]", "no id"]),
        (lambda c: c["images"][1].update(id=1), ["images[1]", "taken by another image"]),
        (lambda c: c["images"][1].update(height="24"), ["images[1]", "no sizes in pixels"]),
        (lambda c: c["images"].insert(0, 3), ["images[0]", "no object"]),
        (lambda c: c["annotations"][2].pop("id"), ["annotations[2]", "no id"]),
        (lambda c: c["annotations"][2].pop("obj_ann_id"), ["annotations[2]", "no obj_ann_id"]),
        (lambda c: c["annotations"][2].update(image_id=99), ["annotations[2]", "no image has the id 99"]),
        (lambda c: c["annotations"].insert(1, None), ["annotations[1]", "no object"]),
    ],
)
def test_coco_entries_that_are_wrong_are_named_with_their_file(tmp_path, change, words):
    write_dataset("PACO", tmp_path, SCENES[:2])
    path = tmp_path / "test/PACO/paco_lvis_v1_val.json"
    edit(path, change)
    with pytest.raises(ValueError) as caught:
        open_dataset("PACO", tmp_path)
    message = str(caught.value)
    assert all(word in message for word in [str(path), "download", *words]), message


@pytest.mark.parametrize("text", ["[]", "7", "[" * 100_000, "\xff", ""])
def test_coco_file_that_is_no_object(tmp_path, text):
    write_dataset("PACO", tmp_path, SCENES[:1])
    path = tmp_path / "test/PACO/paco_lvis_v1_val.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="paco_lvis_v1_val.json: not a whole COCO file"):
        open_dataset("PACO", tmp_path)


def test_coco_image(tmp_path):
    write_dataset("dev", tmp_path, SCENES[:2])
    image = tmp_path / "dev/images/00001.jpg"
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(SCENES[1].image).save(image, exif=exif)
    expect_bad(tmp_path, "dev-part", "00001", image, tmp_path / "dev/part.json", "EXIF")
    image.unlink()
    expect_bad(tmp_path, "dev-part", "00001", image, "missing")


def test_coco_file(tmp_path):
    write_dataset("dev", tmp_path, SCENES[:2])
    path = tmp_path / "dev/part.json"
    path.write_text(path.read_text()[:500])
    with pytest.raises(ValueError, match="part.json: .*download it again"):
        open_dataset("dev-part", tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="part.json"):
        open_dataset("dev-part", tmp_path)


@pytest.mark.parametrize("name", ["Bodypart", "EasyPortrait"])
def test_label_map(tmp_path, name):
    write_dataset(name, tmp_path, SCENES[:2])
    folder = tmp_path / (
        "test/LV-MHP-v2/val/parsing_annos" if name == "Bodypart" else "test/EasyPortrait/annotations/val"
    )
    path = sorted(folder.iterdir())[0]
    sample = open_dataset(name, tmp_path).names[0]
    save_mask(path, np.ones((9, 9)))
    expect_bad(tmp_path, name, sample, path, "9 x 9", "24 x 32")
    for file in folder.glob(f"{sample}*"):
        save_mask(file, np.zeros((24, 32)))
    expect_bad(tmp_path, name, sample, path, "holds no mask", "remove")


def test_names_and_folders(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'COIFT'"):
        open_dataset("COIF", tmp_path)
    with pytest.raises(FileNotFoundError, match="test/HRSOD"):
        open_dataset("HRSOD", tmp_path)
    write_dataset("COIFT", tmp_path, SCENES[:1])
    shutil.rmtree(tmp_path / "test/COIFT/masks")
    with pytest.raises(FileNotFoundError, match="masks"):
        open_dataset("COIFT", tmp_path)
    with pytest.raises(ValueError, match="known are"):
        write_dataset("COCO", tmp_path, SCENES)


def test_scene_without_mask_is_not_written(tmp_path):
    scene = type("Scene", (), vars(SCENES[0]) | {"salient": np.zeros((24, 32), bool)})
    with pytest.raises(ValueError, match="scene 0 of data set COIFT has no salient mask"):
        write_dataset("COIFT", tmp_path, [scene])
    assert not list(tmp_path.iterdir())
