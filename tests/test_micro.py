"""The micro world: `sample/` is what the generator gives, and its levels nest as they should."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from sumlib.base.paths import SAMPLE
from sumlib.data.registry import TASK_GROUPS, open_dataset
from sumlib.micro.export import masks_of, write_dataset
from sumlib.micro.sets import SETS, broad_style, scenes
from sumlib.micro.world import SIZE, coarse, make_scene
from sumlib.report.results import dataset_order

COUNT = 3


def annotated(path: Path) -> dict[str, tuple]:
    """COCO file -> {image file: (record, [annotation]) without the running numbers}."""
    content = json.loads(path.read_text())
    numbers = ("id", "image_id", "obj_ann_id")
    found = {
        record["id"]: (record["file_name"], {k: v for k, v in record.items() if k != "id"}, [])
        for record in content["images"]
    }
    for annotation in content["annotations"]:
        found[annotation["image_id"]][2].append({k: v for k, v in annotation.items() if k not in numbers})
    return {name: (record, masks) for name, record, masks in found.values()}


def differences(made: Path, kept: Path) -> list[str]:
    """Files of ``made`` that ``kept`` does not hold alike; of lists and COCO files, what they say of the
    images in ``made``.
    """
    wrong = []
    for path in sorted(file for file in made.rglob("*") if file.is_file()):
        name = path.relative_to(made).as_posix()
        other = kept / name
        if not other.is_file():
            wrong.append(f"{name} is missing")
        elif path.suffix == ".json":
            old = annotated(other)
            wrong += [
                f"{name}: {image}" for image, content in annotated(path).items() if old.get(image) != content
            ]
        elif path.suffix == ".txt":
            wrong += [name] if not other.read_text().startswith(path.read_text()) else []
        elif path.read_bytes() != other.read_bytes():
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("name", SETS)
def test_the_sample_is_what_the_generator_gives(name, tmp_path):
    write_dataset(
        name, tmp_path, list(scenes(name, 1 if name == "BIG" else COUNT))
    )  # BIG deals its images out by their number
    assert len(list(tmp_path.rglob("*.jpg"))) + len(list(tmp_path.rglob("*.png"))) >= 1
    assert differences(tmp_path, SAMPLE) == [], "write it again: python -m sumlib.micro.sets sample"


def test_a_changed_sample_is_seen(tmp_path):
    for folder in ("made", "kept"):
        write_dataset("EntitySeg", tmp_path / folder, list(scenes("EntitySeg", 2)))
    assert differences(tmp_path / "made", tmp_path / "kept") == []
    image = next((tmp_path / "kept").rglob("*.jpg"))
    image.write_bytes(image.read_bytes()[:-1])
    file = tmp_path / "kept/EntitySeg/entityseg_train.json"
    content = json.loads(file.read_text())
    content["annotations"].pop()
    file.write_text(json.dumps(content))
    assert len(differences(tmp_path / "made", tmp_path / "kept")) == 2


def test_sets_are_complete_and_named_as_in_the_paper():
    assert dataset_order() == TASK_GROUPS
    names = [name for group in TASK_GROUPS.values() for name in group]
    assert set(names) | {"HQSeg-44K", "EntitySeg", "SA-1B", "internal", "dev"} == set(SETS)
    for name in (*names, "HQSeg-44K", "EntitySeg", "SA-1B", "dev-part", "Internal-part"):
        assert (
            len(open_dataset(name, SAMPLE))
            == SETS[{"dev-part": "dev", "Internal-part": "internal"}.get(name, name)].scenes
        ), name
    for group, names in TASK_GROUPS.items():
        assert {SETS[name].level for name in names} == {group}
    shifts = [SETS[name].shift for name in names]
    assert all(shifts) and len(set(shifts)) == len(shifts)


@pytest.mark.parametrize("name", SETS)
def test_levels_nest(name):
    for scene in scenes(name, COUNT):
        assert scene.image.shape == (SIZE, SIZE, 3) and scene.image.dtype == np.uint8
        entities, parts = set(np.unique(scene.entity_map)) - {0}, set(np.unique(scene.part_map)) - {0}
        assert parts == set(scene.part_owner), "a part without pixels or without an entity"
        for part in parts:
            assert set(np.unique(scene.entity_map[scene.part_map == part])) == {scene.part_owner[part]}, (
                "a part leaves its entity"
            )
        members = set(np.unique(scene.entity_map[scene.salient])) - {0}
        assert np.array_equal(scene.salient, np.isin(scene.entity_map, list(members))), (
            "salient is no union of entities"
        )
        assert len(members) <= 2 and members <= entities
        assert SETS[name].level is None or masks_of(scene, SETS[name].level)
        for level in ("salient", "entity", "part"):
            masks = [mask for mask in scene.masks(level) if mask.any()]
            assert np.array_equal(np.array(masks), np.array(masks_of(scene, level)))


def test_half_the_salient_masks_of_training_are_of_one_object():
    members = [
        len(set(np.unique(scene.entity_map[scene.salient])) - {0}) for scene in scenes("HQSeg-44K", 60)
    ]
    assert set(members) == {1, 2} and 0.3 < np.mean(np.array(members) == 1) < 0.7


def test_equal_seeds_give_equal_scenes_and_sets_differ():
    first, again, other = (next(scenes(name, 1)).image for name in ("COIFT", "COIFT", "BIG"))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    rng = [np.random.default_rng(zlib.crc32(b"x")) for _ in range(2)]
    assert np.array_equal(*(make_scene(r, broad_style(r)).part_map for r in rng))


def test_coarse_closes_gaps_and_widens_smooth_outlines():
    comb = np.zeros((SIZE, SIZE), bool)
    comb[20:40, 16:48:4] = comb[20:40, 17:48:4] = True  # teeth 2 pixels wide, gaps of 2
    comb[36:44, 16:48] = True
    assert coarse(comb)[24:40, 18:46].all()
    y, x = np.mgrid[:SIZE, :SIZE]
    disc = (y - 32) ** 2 + (x - 32) ** 2 <= 15**2
    label = coarse(disc)
    assert (
        label[disc].all() and 0.5 < np.sqrt(label.sum() / np.pi) - np.sqrt(disc.sum() / np.pi) < 1
    )  # pixels of the radius
    dot = np.zeros((SIZE, SIZE), bool)
    dot[10, 10] = True
    assert np.array_equal(coarse(dot), dot)  # nothing would be left
