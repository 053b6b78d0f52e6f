"""Interactive evaluation against a slow reference: one mask at a time through the official SamPredictor."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scenes import make_scene
from segment_anything import SamPredictor
from small import small_sum

from sumlib.base.masks import mask_box
from sumlib.config.params import load_config
from sumlib.data.registry import open_dataset
from sumlib.evaluate import evaluate_run, interact
from sumlib.metrics import boundary_iou, mask_iou
from sumlib.micro.export import write_dataset
from sumlib.report import results as report
from sumlib.sampler import boundary_click, first_click, next_click

CONFIG = replace(
    load_config("smoke").evaluate,
    rounds=4,
    prompts=("point", "box"),
    settings=("oracle", "single"),
    limit_images=None,
    boundary_distance=3,
)
RUN = replace(load_config("smoke").run("sum-medium"), task_prompt="none")
SIZES = [(24, 32), (32, 32), (32, 32), (48, 36)]  # wide, square twice, and tall with another scale


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name in ("COIFT", "EntitySeg-0", "PACO"):
        write_dataset(name, root, [make_scene(seed, size) for seed, size in enumerate(SIZES)])
    return [open_dataset(name, root) for name in ("COIFT", "EntitySeg-0", "PACO")]


@pytest.fixture(scope="module")
def model():
    return small_sum(2)


@pytest.fixture(scope="module")
def table(model, datasets):
    return evaluate_run(model, datasets, run=RUN, config=CONFIG)


def reference(
    predictor: SamPredictor, mask: np.ndarray, prompt: str, setting: str, rounds: int
) -> list[tuple[float, float]]:
    """(IoU, boundary IoU) of each round of one mask (H, W), by SAM's own predictor."""
    target = torch.from_numpy(mask)[None]
    box = mask_box(target)[0].numpy() if prompt == "box" else None
    start = {"point": first_click, "boundary-point": lambda t: boundary_click(t, CONFIG.boundary_distance)}
    points, labels = ([], []) if prompt == "box" else ([start[prompt](target)[0].numpy()], [1])
    shown, scores = None, []
    for number in range(rounds):
        oracle = number == 0 and setting == "oracle"
        given = {"point_coords": np.array(points), "point_labels": np.array(labels)} if points else {}
        masks, _, low = predictor.predict(**given, box=box, mask_input=shown, multimask_output=oracle)
        iou = mask_iou(torch.from_numpy(masks), target.expand(len(masks), -1, -1))
        best = int(iou.argmax())
        chosen, shown = torch.from_numpy(masks[best])[None], low[best][None]
        scores.append((iou[best].item(), boundary_iou(chosen, target).item()))
        point, label = next_click(target, chosen)
        points, labels = [*points, point[0].numpy()], [*labels, int(label)]
    return scores


@pytest.mark.parametrize("prompt", ["point", "box"])
@pytest.mark.parametrize("setting", ["oracle", "single"])
def test_every_score_is_that_of_the_official_predictor(model, datasets, table, prompt, setting):
    predictor, found, expected = SamPredictor(model.sam), [], []
    rows = (
        table[(table["prompt"] == prompt) & (table["setting"] == setting)]
        .set_index(["dataset", "image", "mask", "round"])
        .sort_index()
    )
    for dataset in datasets:
        for sample in dataset:
            predictor.set_image(sample.image)
            for k, mask in enumerate(sample.masks):
                expected += reference(predictor, mask, prompt, setting, CONFIG.rounds)
                found += rows.loc[(dataset.name, sample.name, k)][["iou", "biou"]].to_numpy().tolist()
    assert (
        len(expected) == len(rows) and np.std(np.array(expected)[:, 0]) > 0.05
    )  # the random model does say different things
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_columns_and_rows(table, datasets):
    masks = sum(len(sample.masks) for dataset in datasets for sample in dataset)
    assert list(table.columns) == list(report.COLUMNS) and len(table) == masks * 2 * 2 * CONFIG.rounds
    assert table.groupby("dataset")["task"].unique().map(list).to_dict() == {
        "COIFT": ["salient"],
        "EntitySeg-0": ["entity"],
        "PACO": ["part"],
    }
    assert [set(table[name]) for name in ("run", "model", "train_set", "seed")] == [
        {"sum-medium"},
        {"SUM"},
        {"FT-Medium"},
        {0},
    ]
    assert (
        table["iou"].dtype == table["biou"].dtype == np.float32
        and table[["iou", "biou"]].to_numpy().min() >= 0
    )
    assert table[["iou", "biou"]].to_numpy().max() <= 1 and set(table["round"]) == {1, 2, 3, 4}
    assert not table.duplicated(["dataset", "image", "mask", "prompt", "setting", "round"]).any()


def test_a_boundary_point_is_one_round(model, datasets):
    table = evaluate_run(
        model,
        datasets[:1],
        run=RUN,
        config=replace(CONFIG, settings=("oracle",)),
        prompts=("boundary-point",),
    )
    assert set(table["round"]) == {1} and set(table["prompt"]) == {"boundary-point"}
    predictor, expected = SamPredictor(model.sam), []
    for sample in datasets[0]:
        predictor.set_image(sample.image)
        expected += [reference(predictor, mask, "boundary-point", "oracle", 1)[0] for mask in sample.masks]
    np.testing.assert_allclose(table[["iou", "biou"]], expected, atol=1e-6)


def test_limit_and_bad_samples(model, tmp_path):
    write_dataset("COIFT", tmp_path, [make_scene(seed) for seed in range(4)])
    (tmp_path / "test/COIFT/images/00001.jpg").write_bytes(b"no image")
    dataset = open_dataset("COIFT", tmp_path)
    table = evaluate_run(
        model, [dataset], run=RUN, config=replace(CONFIG, rounds=1, limit_images=2), prompts=("point",)
    )
    assert list(table["image"].unique()) == ["00000", "00002"] and len(dataset.bad) == 1
    for image in (tmp_path / "test/COIFT/images").iterdir():
        image.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"COIFT: none of its 4 samples can be evaluated: .*00000\.jpg"):
        evaluate_run(model, [open_dataset("COIFT", tmp_path)], run=RUN, config=replace(CONFIG, rounds=1))


def test_workers_share_the_data_sets_and_change_nothing(model, datasets):
    one, two = (
        evaluate_run(model, datasets, run=RUN, config=replace(CONFIG, workers=workers)) for workers in (1, 2)
    )
    pd.testing.assert_frame_equal(
        one, two, atol=0.02
    )  # one thread or several: a pixel on the edge may fall either way
    assert np.allclose(one[["iou", "biou"]].mean(), two[["iou", "biou"]].mean(), atol=1e-3)


# ---- the task prompt -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tasked(model):
    """The same model with task vectors for ids 1 to 3."""
    other = small_sum(2)
    with torch.no_grad():
        other.task_prompt.weight[1:] = 20 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    return other


def scores(model, datasets, when: str, tasks=()) -> np.ndarray:
    """IoU of every mask (rows) and round (columns)."""
    table = evaluate_run(
        model,
        datasets,
        run=replace(RUN, task_prompt=when),
        config=replace(CONFIG, settings=("oracle",)),
        trained_tasks=tasks,
        prompts=("point",),
    )
    return table.pivot(index=["dataset", "image", "mask"], columns="round", values="iou").to_numpy()


def test_a_task_prompt_is_given_where_the_task_was_trained(model, tasked, datasets):
    plain = scores(model, datasets, "none")
    assert np.array_equal(scores(tasked, datasets, "none", (1, 2, 3)), plain)  # the run has none
    assert np.array_equal(
        scores(tasked, datasets, "first", ()), plain
    )  # nothing trained: all unspecified, whose vector is zero
    rows = np.cumsum([0] + [sum(len(sample.masks) for sample in dataset) for dataset in datasets])
    for k, dataset in enumerate(datasets):  # in the order of the tables: COIFT, EntitySeg-0, PACO
        found = scores(tasked, datasets, "first", (dataset.task,))
        own = np.zeros(len(plain), bool)
        own[rows[k] : rows[k + 1]] = True
        assert np.array_equal(found[~own], plain[~own]) and not np.array_equal(
            found[own][:, 0], plain[own][:, 0]
        )


def test_first_and_continuous_task_prompts(tasked, datasets):
    sample = datasets[1][1]
    embedding = tasked.encode(tasked.preprocess(sample.image)[None]).detach()
    target = torch.from_numpy(sample.masks)
    call = {"prompt": "point", "setting": "single", "rounds": 2, "task": 2, "keep": True}
    masks = {
        when: [
            m
            for *_, m in interact(
                tasked,
                embedding,
                torch.zeros(len(target), dtype=torch.long),
                target,
                task_rounds=when,
                **call,
            )
        ]
        for when in ("none", "first", "continuous")
    }
    assert torch.equal(masks["first"][0], masks["continuous"][0]) and not torch.equal(
        masks["first"][0], masks["none"][0]
    )
    assert not torch.equal(masks["first"][1], masks["continuous"][1])


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ({"prompt": "boxes"}, "no first prompt 'boxes'; the nearest are: box"),
        ({"setting": "rank"}, "no setting 'rank'; the nearest are: ranked"),
    ],
)
def test_an_unknown_prompt_or_setting_is_an_error(model, wrong, near):
    with pytest.raises(ValueError, match=near):
        interact(
            model,
            torch.zeros(1, 32, 8, 8),
            torch.zeros(1).long(),
            torch.ones(1, 32, 32).bool(),
            **({"prompt": "point", "setting": "oracle", "rounds": 1} | wrong),
        )
