"""`project.yaml` of a user's folder: defaults found by looking, unknown keys refused, paths of all kinds."""

from pathlib import Path

import pytest
from own_project import CHECKPOINT, write_project

from sumlib.base.paths import ROOT
from sumlib.config.schema import ConfigError
from sumlib.pipeline.own.project import KEYS, MaskSource, Project, read_project, task_ids
from sumlib.pipeline.own.template import new_project


@pytest.fixture
def folder(tmp_path):
    return write_project(tmp_path / "leaves", images=3, unlabeled=1, checkpoint=False)


def write(folder: Path, text: str) -> Path:
    (folder / "project.yaml").write_text(text, encoding="utf-8")
    return folder


def test_everything_has_a_default_that_is_found_by_looking(folder):
    project = read_project(folder)
    assert project == Project(
        folder, folder / "images", (MaskSource(folder / "masks"),), unlabeled=folder / "unlabeled"
    )
    (folder / "sam_vit_b.pth").write_bytes(b"")
    assert read_project(folder).checkpoint == folder / "sam_vit_b.pth"
    (folder / "other.pth").write_bytes(b"")
    assert read_project(folder).checkpoint is None  # which one is meant is not clear


def test_the_only_json_is_the_masks_and_several_are_refused(tmp_path):
    folder = write_project(tmp_path / "p", "rle", images=2, unlabeled=0, checkpoint=False)
    assert read_project(folder).masks[0].path == folder / "annotations.json"
    assert read_project(folder).unlabeled is None
    (folder / "more.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"annotations\.json, more\.json.*`masks:`"):
        read_project(folder)


def test_paths_may_be_relative_absolute_or_in_the_home_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sam.pth").write_bytes(b"")
    write(folder, f"images: ../leaves/images/\nmasks: {folder}/masks\ncheckpoint: ~/sam.pth")
    project = read_project(folder / "project.yaml")
    assert (project.images, project.masks[0].path) == (folder / "images", folder / "masks")
    assert project.checkpoint == tmp_path / "sam.pth"
    monkeypatch.chdir(folder)
    assert read_project(".") == project


def test_every_key_is_read(folder):
    write(
        folder,
        "task: leaf\nform: labels\nmodel: vit_b\ntuning: lora\nrecipe: 8gb\nheld_out: 0.3\nkeep: 0.5\n"
        "learning_curve: [2, all]\nseed: 4\niterations: 10\nhours: 2\nbad_share: 0\ncontrast: type\n"
        "foreground: 0\nignore: [7, 255]\nsplit: true\ncrowd: skip\ninit_from: earlier\nevaluate: {me: .}\n",
    )
    project = read_project(folder)
    assert project.masks == (MaskSource(folder / "masks", "leaf", "labels"),)
    assert (project.model, project.tuning, project.recipe, project.held_out) == ("vit_b", "lora", "8gb", 0.3)
    assert (project.keep, project.learning_curve, project.seed) == (0.5, (2, 0), 4)
    assert (project.iterations, project.hours, project.bad_share) == (10, 2.0, 0.0)
    assert (project.contrast, project.foreground, project.ignore) == ("type", 0, (7, 255))
    assert (project.split, project.crowd, project.init_from) == (True, "skip", folder / "earlier")
    assert project.evaluate == (("me", folder),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("maskes: masks", "unknown key maskes; the nearest known one is masks"),
        ("recipe: 12gb", "recipe is '12gb'; allowed: one of auto, cpu, 8gb"),
        ("masks: mask", "there is no such folder or file; did you mean masks?"),
        ("images: nowhere", "nowhere: there is no such folder; put it there or correct images"),
        ("images: project.yaml", "project.yaml is no folder"),
        ("task: 3", "task is 3; allowed: salient, entity, part, or a name of your own"),
        ("task: unspecified", "for masks of no kind"),
        ("task: salient\nmasks: {part: masks}", "remove the key task"),
        ("masks: {part: []}", "masks.part is "),
        ("form: bianry", "the nearest is binary"),
        (
            "masks: {part: masks}\nform: {prat: labels}",
            "unknown key form.prat; the nearest known one is part",
        ),
        ("held_out: 1", "nothing would be trained on"),
        ("held_out: 1.5", "held_out is 1.5; allowed: at least 0 and at most 1"),
        ("held_out: project.yml", "did you mean project.yaml?"),
        ("keep: most", "keep is 'most'; allowed: choose, or a number from 0 to 1"),
        ("learning_curve: 10", "allowed: a list such as [10, 30, all]"),
        ("evaluate: [a]", "a name and a folder"),
        ("checkpoint: 7", "checkpoint is 7; allowed: a text"),
        ("checkpoint: ~nobody_of_this_name/x", "write the whole path"),
        ("seed: 1\nseed: 2", "stands twice"),
        ("a: [", "not valid YAML"),
        ("- images", "must hold keys"),
    ],
)
def test_what_is_wrong_is_named_with_the_remedy(folder, text, message):
    with pytest.raises(ConfigError) as caught:
        read_project(write(folder, text))
    assert message in str(caught.value) and str(folder) in str(caught.value)


def test_a_folder_without_images_or_masks(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_project(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no masks were found .* masks/"):
        read_project(tmp_path)
    (tmp_path / "masks").mkdir()
    with pytest.raises(ConfigError, match="no images were found .* images/"):
        read_project(tmp_path)


def test_tasks_of_the_users_own_get_ids_from_four_on(folder):
    write(folder, "masks: {vein: masks, part: masks, hole: [masks, images]}")
    project = read_project(folder)
    assert [source.task for source in project.masks] == ["vein", "part", "hole", "hole"]
    assert task_ids(project) == {"vein": 4, "part": 3, "hole": 5}


def test_held_out_may_be_a_list_or_a_text_file(folder):
    assert read_project(write(folder, "held_out: [a, b]")).held_out == ("a", "b")
    (folder / "test.txt").write_text("a\n\n# b\nc d.jpg\na\n")
    assert read_project(write(folder, "held_out: test.txt")).held_out == ("a", "c d.jpg")
    assert read_project(write(folder, "held_out: images")).held_out == folder / "images"


@pytest.mark.parametrize("name", ["leaves", "Blätter im Herbst", "123", "it's"])
def test_a_new_project_is_written_with_what_was_found(tmp_path, name):
    folder = write_project(tmp_path / name, images=3, unlabeled=1, checkpoint=False)
    project = new_project(folder, CHECKPOINT)
    assert project == read_project(folder)
    assert project.checkpoint == CHECKPOINT and project.masks[0].task == "salient"
    assert project.images == folder / "images" and project.unlabeled == folder / "unlabeled"
    text = project.file.read_text()
    assert "# masks: binary masks: values 0/1 (3)" in text and "images: images\n" in text
    with pytest.raises(FileExistsError, match="edit it"):
        new_project(folder)


def test_every_key_of_the_template_is_known(tmp_path):
    """Each line that shows a default by a comment is read once the mark is taken away."""
    folder = write_project(tmp_path / "p", images=3, unlabeled=1, checkpoint=False)
    new_project(folder, CHECKPOINT)
    text = (folder / "project.yaml").read_text()
    keys = [line[2:].split(":")[0] for line in text.splitlines() if line[:2] == "# " and ":" in line]
    shown = [key for key in keys if key.replace("_", "").isalpha() and key not in ("masks",)]
    lines = [line[2:] for line in text.splitlines() if line[2:].split(":")[0] in shown and line[:2] == "# "]
    content = [line for line in lines if not line.startswith("evaluate") and "Found" not in line]
    plain = [line for line in text.splitlines() if not line.startswith("#")]
    project = read_project(write(folder, "\n".join([*plain, *content])))
    assert len(content) >= 14 and project.learning_curve == (10, 30, 100, 0)


def test_every_key_is_documented(tmp_path):
    folder = write_project(tmp_path / "p", images=3, unlabeled=1, checkpoint=False)
    new_project(folder)
    template, page = (folder / "project.yaml").read_text(), (ROOT / "docs" / "own_data.md").read_text()
    table = page[page.index("## Keys of") :]
    assert [key for key in KEYS if f"`{key}`" not in table] == []
    assert [key for key in KEYS if f"{key}:" not in template] == []
