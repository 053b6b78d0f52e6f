"""Data sets come from params.yaml: an entry adds a set, a file in layouts/ adds a layout, a wrong name is
told."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import SCENES

from sumlib.base.code import modules_used
from sumlib.base.paths import PARAMS, ROOT
from sumlib.config.params import load_datasets
from sumlib.config.schema import ConfigError
from sumlib.data import REGISTRY, TASK_GROUPS, layouts
from sumlib.data.groups import task_groups
from sumlib.data.registry import Layout, find_reader, open_dataset, read_registry
from sumlib.data.tasks import TASKS, Task
from sumlib.micro.export import write_dataset


def with_entry(path, line: str, role: str = "test"):
    """A copy of params.yaml with one more data set."""
    text, count = re.subn(rf"(\n  {role}:[^\n]*\n)", rf"\1    {line}\n", PARAMS.read_text(), count=1)
    assert count == 1
    path.write_text(text)
    return path


def test_every_set_has_a_reader_and_takes_its_options(tmp_path):
    for name, layout in REGISTRY.items():
        assert callable(find_reader(layout.reader)), name
        folder = tmp_path / layout.folders[0]
        folder.mkdir(parents=True, exist_ok=True)
        with pytest.raises((FileNotFoundError, ValueError), match=f"{layout.folders[0]}.*(missing|put|hold)"):
            open_dataset(name, tmp_path)
    assert list(TASK_GROUPS) == list(TASKS) and torch.full((2,), Task.PART).dtype == torch.long


@pytest.mark.parametrize("role", ["train", "test"])
def test_a_set_of_a_known_layout_is_one_entry(tmp_path, role):
    line = (
        "Own: {folders: [own], layout: coco.coco, task: entity, group: entity, "
        "options: {annotations: entity.json}}"
    )
    params = with_entry(tmp_path / "params.yaml", line, role)
    registry = read_registry(params)
    write_dataset("dev", tmp_path, SCENES[:2])
    (tmp_path / "dev").rename(tmp_path / "own")
    samples = list(open_dataset("Own", tmp_path, registry))
    assert len(samples) == 2 and {sample.task for sample in samples} == {Task.ENTITY}
    groups = task_groups(load_datasets(params))
    assert ("Own" in groups["entity"]) == (role == "test")
    assert registry.keys() - REGISTRY.keys() == {"Own"}


def test_a_new_layout_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code/stripes.py").write_text(
        "from functools import partial\n"
        "import numpy as np\n"
        "from sumlib.data.dataset import Entry\n"
        "from sumlib.data.images import read_image\n"
        "def load(path):\n"
        "    image = read_image(path)\n"
        "    return image, np.ones((1, *image.shape[:2]), bool), {}\n"
        "def stripes(root, suffix='.png'):\n"
        "    return [Entry(p.stem, p, partial(load, p)) for p in sorted(root.glob('*' + suffix))]\n"
    )
    monkeypatch.setattr(layouts, "__path__", [*layouts.__path__, str(tmp_path / "code")])
    params = with_entry(
        tmp_path / "params.yaml",
        "Own: {folders: [own], layout: stripes.stripes, task: part, options: {suffix: .bmp}}",
    )
    (tmp_path / "own").mkdir()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "own/a.bmp")
    (sample,) = open_dataset("Own", tmp_path, read_registry(params))
    assert sample.masks.all() and sample.masks.shape == (1, 4, 6) and sample.task is Task.PART


def test_a_change_of_a_layout_is_a_change_of_what_opens_data_sets():
    files = {f"sumlib.data.layouts.{path.stem}" for path in (ROOT / "sumlib/data/layouts").glob("*.py")}
    assert files - {"sumlib.data.layouts.__init__"} <= set(modules_used("sumlib.data.registry"))


def test_wrong_names_and_options_are_told(tmp_path):
    with pytest.raises(ValueError, match="no data set is called 'HRSOT'; did you mean 'HRSOD'"):
        open_dataset("HRSOT", tmp_path)
    for wrong, near in (
        ("pairs.hqsge", "pairs.hqseg"),
        ("pair.hqseg", "pairs.hqseg"),
        ("coco.load_coco", "coco.coco"),
    ):
        with pytest.raises(ValueError, match=f"no layout is called '{wrong}'; did you mean '{near}'"):
            find_reader(wrong)
    with pytest.raises(ValueError, match=r"layout pairs.paired_folders: .*'mask'.*options are images, masks"):
        Layout(
            ("a",), "pairs.paired_folders", Task.PART, options={"images": "i", "masks": "m", "mask": "m"}
        ).entries(tmp_path)
    params = with_entry(tmp_path / "params.yaml", "Own: {folders: [own], layout: coco.coco, task: entities}")
    with pytest.raises(ConfigError, match=r"datasets.test.Own.task is 'entities'"):
        read_registry(params)
