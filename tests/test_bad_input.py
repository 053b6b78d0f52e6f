"""Bad data gives one message that names the file and the remedy; bad samples are listed, counted and left out."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from scenes import SCENES

from sumlib.data.images import BadSampleError, read_labels, read_mask
from sumlib.data.registry import open_dataset
from sumlib.micro.export import write_dataset

IMAGE, MASK = "test/COIFT/images/00001.jpg", "test/COIFT/masks/00001.png"


@pytest.fixture
def root(tmp_path):
    write_dataset("COIFT", tmp_path, SCENES[:3])
    return tmp_path


def expect_bad(root, name, bad, *words):
    """Sample `bad` of data set `name` raises one message with `words`, and is listed, counted and left out."""
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
    ],
)
def test_coco_broken_rle(tmp_path, segmentation):
    write_dataset("dev", tmp_path, SCENES[:2])
    path = tmp_path / "dev/entity.json"
    edit(path, lambda c: c["annotations"][0].update(segmentation=segmentation))
    expect_bad(tmp_path, "dev-entity", "00000", path, "dev/images/00000.jpg", "annotation 1", "restore")


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
