"""The eight additional test sets: every layout is written and read back, wrong files are named, and `sample/` is what the generator gives."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_data import as_set

from sumlib.base.paths import SAMPLE
from sumlib.data.images import BadSampleError
from sumlib.data.layouts.additional import ADDITIONAL, CITYSCAPES_IGNORED, open_additional
from sumlib.data.layouts.coco import decode
from sumlib.micro.additional_sets import SCENES, SETS, _outlines, classes, scenes, write_additional
from sumlib.micro.export import masks_of
from sumlib.report.tables import paper_tables


def expected(name: str, scene) -> list[np.ndarray]:
    """The masks that a set's layout can say of a scene."""
    entities = masks_of(scene, "entity")
    if name in ("DRAM", "GTAV"):
        return [classes(scene) == k for k in np.unique(classes(scene)) if k]
    if name == "NDD20":
        return [decode(_outlines(mask)[:1], *mask.shape) for mask in entities]
    if name == "TrashCan":
        return [decode(_outlines(mask), *mask.shape) for mask in entities]
    return entities


def first(folder: Path, pattern: str) -> Path:
    return sorted(folder.rglob(pattern))[0]


@pytest.mark.parametrize("name", SETS)
def test_round_trip(name, tmp_path):
    made = list(scenes(name, 4))
    write_additional(name, tmp_path, made)
    dataset = open_additional(name, tmp_path)
    assert len(dataset) == 4 and dataset.check() == [] and dataset.task == 0
    found = {np.round(sample.image.mean(), 1): sample for sample in dataset}
    for scene in made:
        sample = min(found.values(), key=lambda s: np.abs(s.image.astype(int) - scene.image).mean())
        assert np.abs(sample.image.astype(int) - scene.image).mean() < 8  # JPEG
        assert as_set(sample.masks) == as_set(expected(name, scene)) and sample.masks.dtype == bool


@pytest.mark.parametrize("name", SETS)
def test_the_sample_is_what_the_generator_gives(name, tmp_path):
    write_additional(name, tmp_path, list(scenes(name)))
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    kept = sorted(
        path.relative_to(SAMPLE) for path in (SAMPLE / "additional" / name).rglob("*") if path.is_file()
    )
    assert files == kept, "write it again: python -m sumlib.micro.additional_sets sample"
    different = [
        str(path) for path in files if (tmp_path / path).read_bytes() != (SAMPLE / path).read_bytes()
    ]
    assert not different, "write it again: python -m sumlib.micro.additional_sets sample"


def test_they_are_the_sets_of_table_19():
    names = paper_tables().query("table == '19'")["dataset"].unique().tolist()
    assert list(ADDITIONAL) == list(SETS) == names
    assert all(len(open_additional(name, SAMPLE)) == SCENES for name in names)
    shifts = [each.shift for each in SETS.values()]
    assert all(shifts) and len(set(shifts)) == len(shifts)


def test_cityscapes_counts_instances_and_classes_but_not_what_is_ignored(tmp_path):
    write_additional("Cityscapes", tmp_path, list(scenes("Cityscapes", 1)))
    path = first(tmp_path, "*instanceIds.png")
    values = np.zeros((64, 64), np.uint16)
    values[0], values[1], values[2], values[3], values[4] = (
        7,
        26001,
        26002,
        29001,
        5,
    )  # road, two cars, an ignored caravan, dynamic
    Image.fromarray(values).save(path)
    masks = open_additional("Cityscapes", tmp_path)[0].masks
    assert as_set(masks) == as_set([values == v for v in (7, 26001, 26002)]) and {29, 5} <= CITYSCAPES_IGNORED


def test_dram_leaves_255_out_and_gtav_reads_indices(tmp_path):
    for name in ("DRAM", "GTAV"):
        write_additional(name, tmp_path, list(scenes(name, 1)))
    path = first(tmp_path / "additional/DRAM", "*.png")
    labels = np.array(Image.open(path))
    labels[0] = 255
    Image.fromarray(labels).save(path)
    assert not any(mask[0].any() for mask in open_additional("DRAM", tmp_path)[0].masks)
    with Image.open(first(tmp_path / "additional/GTAV/labels", "*.png")) as picture:
        assert picture.mode == "P" and set(np.unique(np.array(picture))) <= {0, 24, 26, 33}


def test_ndd20_keeps_both_folders_apart_and_reads_both_versions_of_via(tmp_path):
    write_additional("NDD20", tmp_path, list(scenes("NDD20", 4)))
    before = open_additional("NDD20", tmp_path)
    assert sorted(before.names) == ["ABOVE-0", "ABOVE-1", "BELOW-0", "BELOW-1"]
    path = tmp_path / "additional/NDD20/ABOVE_LABELS.json"
    content = json.loads(path.read_text())
    for record in content.values():
        record["regions"] = {str(k): region for k, region in enumerate(record["regions"])}
    path.write_text(json.dumps(content))
    assert all(as_set(a.masks) == as_set(b.masks) for a, b in zip(before, open_additional("NDD20", tmp_path)))


def test_ibd_as_coco_json(tmp_path):
    scene = next(scenes("IBD", 1))
    write_additional("TrashCan", tmp_path, [scene])
    source, target = tmp_path / "additional/TrashCan/dataset/instance_version", tmp_path / "additional/IBD"
    (target / "images").mkdir(parents=True)
    (target / "annotations.json").write_text((source / "instances_train_trashcan.json").read_text())
    for image in (source / "train").iterdir():
        image.rename(target / "images" / image.name)
    assert as_set(open_additional("IBD", tmp_path)[0].masks) == as_set(expected("TrashCan", scene))


# ---- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("Cityscapes", "*instanceIds.png"),
        ("EgoHOS", "label/*.png"),
        ("DRAM", "*.png"),
        ("iShape", "instance_map/*.png"),
        ("GTAV", "labels/*.png"),
        ("IBD", "masks/*.png"),
    ],
)
def test_bad_label_maps_are_named(name, labels, tmp_path):
    write_additional(name, tmp_path, list(scenes(name, 4)))
    path = sorted((tmp_path / "additional" / name).rglob(labels))[0]
    content = path.read_bytes()
    for change, message in (
        (lambda: path.unlink(), "file is missing"),
        (lambda: path.write_bytes(content[:40]), "truncated"),
        (lambda: Image.new("L", (64, 60), 1).save(path), "mask is 60 x 64"),
        (lambda: Image.new("L", (64, 64), 0).save(path), "holds no mask"),
    ):
        change()
        dataset = open_additional(name, tmp_path)
        (bad,) = dataset.check()
        assert bad.path == path and message in bad.reason and len(dataset.good()) == 3
        with pytest.raises(BadSampleError, match=path.name):
            dataset[dataset.names.index(bad.name)]


@pytest.mark.parametrize(
    ("name", "file"),
    [("NDD20", "BELOW_LABELS.json"), ("TrashCan", "dataset/instance_version/instances_train_trashcan.json")],
)
def test_broken_annotations_are_named(name, file, tmp_path):
    write_additional(name, tmp_path, list(scenes(name, 2)))
    path = tmp_path / "additional" / name / file
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="download it again"):
        open_additional(name, tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="file is missing"):
        open_additional(name, tmp_path)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (7, "TypeError"),
        ({"filename": "0.jpg"}, "KeyError: 'regions'"),
        ({"regions": []}, "KeyError: 'filename'"),
        ({"filename": 5, "regions": []}, "filename is no text"),
        (
            {
                "filename": "0.jpg",
                "regions": [{"shape_attributes": {"all_points_x": [1], "all_points_y": []}}],
            },
            "shorter",
        ),
        (
            {
                "filename": "0.jpg",
                "regions": [{"shape_attributes": {"all_points_x": ["a"], "all_points_y": [1]}}],
            },
            "'a'",
        ),
    ],
)
def test_a_wrong_entry_of_via_is_named(record, words, tmp_path):
    write_additional("NDD20", tmp_path, list(scenes("NDD20", 2)))
    path = tmp_path / "additional/NDD20/BELOW_LABELS.json"
    path.write_text(json.dumps({"dolphin-1": record}))
    with pytest.raises(ValueError, match=f"BELOW_LABELS.json: .*entry 'dolphin-1'.*{words}.*mend"):
        open_additional("NDD20", tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9, 2**63])
def test_outlines_far_outside_the_image_are_named(value, tmp_path):
    write_additional("NDD20", tmp_path, list(scenes("NDD20", 2)))
    path = tmp_path / "additional/NDD20/BELOW_LABELS.json"
    content = json.loads(path.read_text())
    next(iter(content.values()))["regions"][0]["shape_attributes"]["all_points_x"][1] = value
    path.write_text(json.dumps(content))
    (bad,) = open_additional("NDD20", tmp_path).check()
    assert bad.path == path and "annotation 0: a polygon's corner" in bad.reason and "restore" in bad.reason


@pytest.mark.parametrize("name", SETS)
def test_missing_folders_are_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"additional/{name}: folder of data set {name} is missing"):
        open_additional(name, tmp_path)
    (tmp_path / "additional" / name).mkdir(parents=True)
    with pytest.raises((FileNotFoundError, ValueError), match="missing|holds no sample"):
        open_additional(name, tmp_path)


def test_unknown_name():
    with pytest.raises(ValueError, match="no data set is called 'Cityscape'; did you mean 'Cityscapes'"):
        open_additional("Cityscape", SAMPLE)
