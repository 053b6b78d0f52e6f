"""Picture panels: what is clicked, which output is shown, and which images are chosen."""

import numpy as np
import pytest
import torch
from scenes import make_scene
from small import small_sum

from sumlib.analysis import panels as panel
from sumlib.data.registry import open_dataset
from sumlib.figures.pictures import BLUE, overlay
from sumlib.micro.export import write_dataset
from sumlib.sampler import first_click


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("panel")
    write_dataset(
        "dev", root, [make_scene(seed) for seed in range(5)]
    )  # odd ones: entity 2 alone is salient; even ones: both
    return open_dataset("dev-salient", root), open_dataset("dev-entity", root)


@pytest.fixture(scope="module")
def models():
    model = small_sum(2)
    with torch.no_grad():
        model.task_prompt.weight[1:3] += torch.randn(
            2, model.task_prompt.weight.shape[1], generator=torch.Generator().manual_seed(0)
        )
    return small_sum(1), model


@torch.no_grad()
def test_the_single_output_is_output_zero(models, sets):
    sample, model = sets[1][0], models[1]
    target = sample.masks[0]
    embedding = model.encode(model.preprocess(sample.image)[None])
    size = target.shape
    xy = model.to_input_frame(first_click(torch.from_numpy(target)[None]).float(), size)
    for task in (None, 1):
        tasks = None if task is None else torch.tensor([task])
        low, _ = model.decode(embedding, points=xy[:, None], labels=torch.ones(1, 1), tasks=tasks)
        expected = (model.upscale(low[:, :1], size) > 0)[0, 0].numpy()
        assert np.mean(panel.one_output(model, sample, target, "single", task=task) != expected) < 0.01


@torch.no_grad()
def test_the_ranked_output_is_the_one_with_the_largest_predicted_iou(models, sets):
    sample, model = sets[1][0], models[1]
    target = sample.masks[0]
    xy = model.to_input_frame(first_click(torch.from_numpy(target)[None]).float(), target.shape)
    for task in (None, 1):
        low, score = model.decode(
            model.encode(model.preprocess(sample.image)[None]),
            points=xy[:, None],
            labels=torch.ones(1, 1),
            tasks=None if task is None else torch.tensor([task]),
        )
        k = 1 + int(score[0, 1:].argmax())
        expected = (model.upscale(low[:, k : k + 1], target.shape) > 0)[0, 0].numpy()
        assert np.mean(panel.one_output(model, sample, target, "ranked", task=task) != expected) < 0.01


def test_task_rows_take_groups_of_several_objects_and_click_the_largest(models, sets):
    rows, points = panel.task_rows(*models, *sets, count=9)
    groups = [
        k
        for k, sample in enumerate(sets[0])
        if len([m for m in sets[1][k].masks if (m & sample.masks[0]).sum() > 0.9 * m.sum()]) > 1
    ]
    assert len(rows) == len(points) == len(groups) > 0 and list(rows[0])[0] == "image"
    for row, (x, y), k in zip(rows, points, groups):
        clicked = max(sets[1][k].masks, key=lambda m: m.sum())
        assert clicked[y, x] and np.array_equal(
            row["truth, entity"], overlay(sets[0][k].image, clicked, "#009E73")
        )
        assert not np.array_equal(row["SUM, salient"], row["SUM, no task"])
    assert len(panel.task_rows(*models, *sets, count=1)[0]) == 1


def test_model_rows_show_each_model_and_its_iou(models, sets):
    rows, points = panel.model_rows({"SAM": (models[0], None), "SUM": (models[1], 2)}, sets[1], (0, 3))
    assert len(rows) == 2 and len(rows[0]) == 4
    sample = sets[1][3]
    target = sample.masks[sample.masks.sum((1, 2)).argmax()]
    mask = panel.one_output(models[1], sample, target, "single", task=2)
    title = f"SUM, IoU {100 * (mask & target).sum() / (mask | target).sum():.0f}"
    assert (
        np.array_equal(rows[1][title], overlay(sample.image, mask, BLUE))
        and target[points[1][1], points[1][0]]
    )
