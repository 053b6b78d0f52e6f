"""Interactive fine-tuning: where prompts come from, what is trained, and that all models train alike."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scenes import make_scene
from small import changed_package, small_sum
from torch.nn import functional as F

from sumlib.base.masks import jittered_boxes, mask_box
from sumlib.config.params import load_config
from sumlib.data.dataset import Dataset, Entry
from sumlib.data.registry import open_dataset
from sumlib.finetune import _fingerprint as fingerprint_of
from sumlib.finetune import finetune
from sumlib.methods.augseg import AugSeg
from sumlib.methods.registry import load_method
from sumlib.methods.teacher import Teacher
from sumlib.metrics import mask_iou
from sumlib.micro.export import write_dataset
from sumlib.model.checkpoint import load_sam, load_sum, save_sam, save_sum
from sumlib.model.sum import Sum
from sumlib.pipeline.smoke import pseudo_labels
from sumlib.train.batches import Batch, HumanSource, PseudoSource, collate, open_sources
from sumlib.train.interactive import (
    first_prompt,
    interactive_step,
    mask_losses,
    next_prompt,
)
from sumlib.train.tuning import parameter_groups

SMOKE = load_config("smoke")
CONFIG = replace(SMOKE.finetune, rounds=4, bf16=False)
RUNS = {
    name: SMOKE.run(f"{name}-medium")
    for name in ("human", "vanilla", "sum", "mask-refinement", "sum-no-task-prompt", "sum-continuous")
}


def parts_of(prompts) -> tuple[torch.Tensor, torch.Tensor]:
    return prompts.xy, prompts.codes


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Labels(dict):
    """Pseudo-labels by image name, read as `PseudoLabels` is."""

    path = Path("labels.parquet")

    @property
    def images(self) -> Sequence[str]:
        return list(self)

    def size(self, name: str) -> tuple[int, int]:
        return self[name].masks.shape[1:]

    def areas(self, name: str, kind: str) -> np.ndarray:
        return (self[name].masks if kind == "sam" else self[name].refined).sum((1, 2))

    def read(self, name: str, rows) -> SimpleNamespace:
        return SimpleNamespace(**{key: value[rows] for key, value in vars(self[name]).items()})


def pseudo_label(scene) -> SimpleNamespace:
    """Two entities, their refined masks and points, and certainty 1 on the left, 0.25 on the right."""
    masks = np.stack([scene.entity_map == 1, scene.entity_map == 2])
    refined = masks.copy()
    refined[:, :6] = False
    certainty = np.where(np.arange(masks.shape[2]) < 20, 1, 0.25).astype(np.float32) * np.ones(
        masks.shape, np.float32
    )
    return SimpleNamespace(
        masks=masks, refined=refined, points=np.array([[5.0, 10.0], [15.0, 10.0]]), certainty=certainty
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Training sets of the smoke configuration, of small scenes 24 x 32."""
    root = tmp_path_factory.mktemp("data")
    for name in ("HQSeg-44K", "EntitySeg", "SA-1B"):
        write_dataset(name, root, [make_scene(seed) for seed in range(6)])
    return root


@pytest.fixture
def model():
    return small_sum(3).train()


@pytest.fixture(scope="module")
def human(root):
    return HumanSource([open_dataset(name, root) for name in ("HQSeg-44K", "EntitySeg")])


@pytest.fixture(scope="module")
def pseudo(root):
    images = open_dataset("SA-1B", root)
    return PseudoSource(
        images, Labels({name: pseudo_label(make_scene(0)) for name in images.names[:3]}), "sam"
    )


def square(*corners: tuple[int, int, int, int], size: int = 16) -> torch.Tensor:
    """(N, S, S) bool masks of filled rectangles x0, y0, x1, y1 (inclusive)."""
    masks = torch.zeros(len(corners), size, size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, corners):
        mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return masks


def hand_batch(target: torch.Tensor, certainty=None, backup=None) -> Batch:
    """A batch of N masks on one grey image; human masks unless there is a ``backup``."""
    n, size = len(target), target.shape[-1]
    backup = torch.full((n, 2), -1.0) if backup is None else torch.tensor(backup).expand(n, 2)
    certainty = torch.ones(target.shape) if certainty is None else certainty
    return Batch(
        torch.zeros(1, 3, size, size), torch.zeros(n).long(), target, certainty, backup, torch.zeros(n).long()
    )


# ---- prompts -----------------------------------------------------------------------------------------------


def test_half_of_the_first_prompts_are_boxes_the_others_points_inside():
    target = square(*[(4, 5, 11, 13)] * 400)
    xy, codes = parts_of(first_prompt(hand_batch(target), None, rng(), 0.1))
    boxed = codes[:, 0] == 2
    assert (
        160 < boxed.sum() < 240
        and codes[boxed].unique(dim=0).tolist() == [[2, 3]]
        and codes[~boxed].unique(dim=0).tolist() == [[1, -1]]
    )
    points = xy[~boxed, 0].long()
    assert (
        (points >= torch.tensor([4, 5])).all()
        and (points <= torch.tensor([11, 13])).all()
        and len(points.unique(dim=0)) > 50
    )
    assert (
        xy[boxed] - torch.tensor([[4.0, 5.0], [11.0, 13.0]])
    ).abs().max() <= 0.8 + 1e-6  # a tenth of 8 pixels at most


def test_jitter_goes_both_ways_and_stays_in_the_frame():
    target = square(*[(2, 3, 12, 8)] * 200, (0, 0, 15, 15))
    moved = jittered_boxes(target, rng(), 0.1) - mask_box(target)
    assert (moved[:-1].min(0).values < -0.3).all() and (moved[:-1].max(0).values > 0.3).all()
    assert (moved[:-1].abs() <= torch.tensor([1.0, 0.5, 1.0, 0.5]) + 1e-6).all()
    assert (
        jittered_boxes(target, rng(), 0.1)[-1].min() >= 0
        and jittered_boxes(target, rng(), 0.1)[-1].max() <= 15
    )


def test_first_points_follow_certainty_and_fall_back_to_the_point_that_made_the_label():
    target = square(*[(4, 4, 9, 9)] * 200)
    certainty = torch.zeros(target.shape)
    certainty[:100, 6, 7] = 1.0  # one certain pixel; in the second half none
    xy, codes = parts_of(first_prompt(hand_batch(target, certainty, [8.0, 5.0]), certainty, rng(), 0.1))
    point = codes[:, 0] == 1
    assert xy[:100][point[:100], 0].unique(dim=0).tolist() == [[7.0, 6.0]]
    assert xy[100:][point[100:], 0].unique(dim=0).tolist() == [[8.0, 5.0]]


def test_next_points_lie_in_the_error_and_say_what_is_there():
    target, prediction = square((2, 2, 9, 9), (2, 2, 9, 9)), square((2, 2, 9, 5), (2, 2, 9, 13))
    for seed in range(20):
        point, label = next_prompt(hand_batch(target), prediction, None, rng(seed))
        assert label.tolist() == [[1], [0]]  # missed foreground, false foreground
        assert 6 <= point[0, 0, 1] <= 9 < 10 <= point[1, 0, 1] <= 13


def test_without_an_error_pseudo_labels_use_their_own_point_and_human_masks_none():
    target = square((2, 2, 9, 9))
    point, label = next_prompt(hand_batch(target), target, None, rng())
    assert label.tolist() == [[-1]]
    point, label = next_prompt(hand_batch(target, backup=[4.0, 6.0]), target, None, rng())
    assert (point.tolist(), label.tolist()) == ([[[4.0, 6.0]]], [[1]])
    uncertain = torch.zeros(target.shape)
    point, label = next_prompt(
        hand_batch(target, uncertain, [4.0, 6.0]), ~target, uncertain, rng()
    )  # an error, but no certain pixel
    assert (point.tolist(), label.tolist()) == ([[[4.0, 6.0]]], [[1]])


def test_human_masks_are_sampled_uniformly_whatever_the_run(model, human):
    batch = human.draw(model, 2, rng())
    assert (batch.certainty == 1).all() and (batch.backup == -1).all()


# ---- one step ----------------------------------------------------------------------------------------------


def record(model, monkeypatch) -> list[tuple]:
    """(codes, task ids or None, mask prompt or None) of every call of the decoder from now on."""
    calls, decode = [], model.decode_codes

    def recorded(embeddings, xy, codes, *, mask_inputs=None, tasks=None):
        calls.append((codes.clone(), tasks, mask_inputs))
        return decode(embeddings, xy, codes, mask_inputs=mask_inputs, tasks=tasks)

    monkeypatch.setattr(model, "decode_codes", recorded)
    return calls


def mixed(model, human, pseudo, prompts: int = 2) -> Batch:
    return collate([human.draw(model, prompts, rng(1)), pseudo.draw(model, prompts, rng(2))])


def test_rounds_get_the_prompts_of_the_paper(model, human, pseudo, monkeypatch):
    calls = record(model, monkeypatch)
    interactive_step(model, mixed(model, human, pseudo), RUNS["sum"], CONFIG, rng())
    assert [codes.shape for codes, *_ in calls] == [
        (4, 2),
        (4, 3),
        (4, 4),
        (4, 4),
    ]  # a point more each round, none in the last
    assert all(torch.equal(a[:, : b.shape[1]], b) for (a, *_), (b, *_) in zip(calls[1:], calls))
    assert calls[0][2] is None and all(
        mask.shape == (4, 1, 32, 32) and not mask.requires_grad for *_, mask in calls[1:]
    )


@pytest.mark.parametrize(
    ("run", "rounds"), [("vanilla", 0), ("sum-no-task-prompt", 0), ("sum", 1), ("sum-continuous", 4)]
)
def test_rounds_get_the_task_prompt_that_the_run_says(model, human, pseudo, monkeypatch, run, rounds):
    calls, batch = record(model, monkeypatch), mixed(model, human, pseudo)
    interactive_step(model, batch, RUNS[run], CONFIG, rng())
    assert [tasks is not None for _, tasks, _ in calls] == [True] * rounds + [False] * (4 - rounds)
    assert all(torch.equal(tasks, batch.task) for _, tasks, _ in calls[:rounds])
    assert batch.task[:2].unique().item() in (1, 2) and batch.task[2:].tolist() == [0, 0]  # human, unlabeled


def test_every_run_sees_as_many_prompts(model, human, pseudo, monkeypatch):
    counts = {}
    for name, run in RUNS.items():
        with monkeypatch.context() as patch:
            calls = record(model, patch)
            plan = zip((human, pseudo), SMOKE.prompts_per_iteration(run))
            drawn = [
                source.draw(model, prompts, rng(k)) for source, each in plan for k, prompts in enumerate(each)
            ]
            interactive_step(model, collate(drawn), run, CONFIG, rng())
            counts[name] = [codes.shape for codes, *_ in calls]
    assert all(shapes == counts["sum"] for shapes in counts.values())
    assert SMOKE.prompts_per_iteration(RUNS["human"]) == ([2, 2], []) and SMOKE.prompts_per_iteration(
        RUNS["sum"]
    ) == ([1], [3])


def gradients(model, batch, run, step=interactive_step, config=CONFIG) -> dict[str, torch.Tensor]:
    parameter_groups(model, config, task_prompt=True)
    model.zero_grad(set_to_none=True)
    step(model, batch, run, config, rng(7))
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_with_certainty_one_sum_is_vanilla(model, human, pseudo):
    batch = mixed(model, human, pseudo)
    batch = replace(batch, certainty=torch.ones_like(batch.certainty))
    vanilla, ours = (gradients(model, batch, RUNS[name]) for name in ("vanilla", "sum-no-task-prompt"))
    assert vanilla.keys() == ours.keys() and all(torch.equal(vanilla[name], ours[name]) for name in ours)


def test_with_uncertain_pixels_it_is_not(model, human, pseudo):
    batch = mixed(model, human, pseudo)
    vanilla, ours = (gradients(model, batch, RUNS[name]) for name in ("vanilla", "sum-no-task-prompt"))
    assert not all(torch.equal(vanilla[name], ours[name]) for name in ours)


def one_graph(model, batch, run, config, generator) -> None:
    """`interactive_step` as one would write it without care for memory: one graph, one backward."""
    certainty = batch.certainty if run.uncertainty_loss else None
    weight = batch.certainty if run.uncertainty_sampling else None
    embedding, rows = model.encode(batch.pixels)[batch.image], torch.arange(len(batch.target))
    xy, codes = parts_of(first_prompt(batch, weight, generator, 0.1))
    total, shown = 0.0, None
    for number in range(config.rounds):
        tasks = (
            batch.task
            if run.task_prompt == "continuous" or (run.task_prompt == "first" and number == 0)
            else None
        )
        low, score = model.decode_codes(embedding, xy, codes, mask_inputs=shown, tasks=tasks)
        outputs = [1, 2, 3] if number == 0 else [0]
        each = mask_losses(low[:, outputs], batch, certainty, config)
        best = each.argmin(1)
        mask = low[:, outputs][rows, best]
        prediction = mask.detach() > 0
        total = (
            total
            + (
                each[rows, best]
                + config.iou_weight
                * F.mse_loss(
                    score[:, outputs][rows, best], mask_iou(prediction, batch.target), reduction="none"
                )
            ).mean()
        )
        shown = mask.detach()[:, None]
        if number < config.rounds - 2:
            point, label = next_prompt(batch, prediction, weight, generator)
            xy, codes = torch.cat([xy, point], 1), torch.cat([codes, label], 1)
    total.backward()


@pytest.mark.parametrize("run", ["sum", "sum-continuous", "vanilla"])
def test_gradients_are_those_of_one_graph(model, human, pseudo, run):
    batch = mixed(model, human, pseudo)
    with torch.no_grad():
        model.task_prompt.weight[1:] = torch.randn(3, 32, generator=rng())
    ours, plain = (gradients(model, batch, RUNS[run], step) for step in (interactive_step, one_graph))
    assert (
        ours.keys() == plain.keys()
        and "sam.image_encoder.pos_embed" in ours
        and ("task_prompt.weight" in ours) == (run != "vanilla")
    )
    for name, value in plain.items():
        torch.testing.assert_close(
            ours[name],
            value,
            rtol=1e-3,
            atol=1e-5 * max(1.0, value.abs().max().item()),
            msg=lambda text, name=name: f"{name}: {text}",
        )
    assert max(value.abs().max() for value in plain.values()) > 1e-3


def test_a_frozen_encoder_gets_no_gradient(model, human, pseudo):
    found = gradients(
        model, mixed(model, human, pseudo), RUNS["sum"], config=replace(CONFIG, encoder_lr_scale=0.0)
    )
    assert found and not any(name.startswith("sam.image_encoder") for name in found)


def test_mask_losses_by_hand(human, model):
    batch = hand_batch(square((0, 0, 15, 7)))
    logits, certainty = torch.zeros(1, 1, 16, 16), torch.full((1, 16, 16), 0.5)
    focal = 0.5 * (0.25 + 0.75) * 0.25 * np.log(2)
    assert mask_losses(logits, batch, None, CONFIG).item() == pytest.approx(
        20 * focal + 1 - (2 * 64 + 1) / (256 + 1)
    )
    assert mask_losses(logits, batch, certainty, CONFIG).item() == pytest.approx(
        20 * focal / 2 + 0
    )  # no pixel above theta


# ---- sources -----------------------------------------------------------------------------------------------


def test_masks_are_drawn_without_repeats_as_far_as_they_go(model, human, pseudo):
    batch = pseudo.draw(model, 5, rng())
    counts = [int((batch.target == mask).all((1, 2)).sum()) for mask in batch.target.unique(dim=0)]
    assert sorted(counts) == [2, 3] and len(batch.target) == 5


def test_pseudo_labels_come_with_certainty_and_point_in_the_models_frame(model, root):
    images = open_dataset("SA-1B", root)
    label = pseudo_label(make_scene(0))
    for kind, masks in (("sam", label.masks), ("refined", label.refined)):
        batch = PseudoSource(images, Labels({images.names[2]: label}), kind).draw(model, 2, rng())
        order = [
            int((batch.target[k, :24] != torch.from_numpy(masks[0])).any()) for k in range(2)
        ]  # 24 x 32 in a frame of 32 x 32
        assert (
            sorted(order) == [0, 1]
            and torch.equal(batch.target[:, :24], torch.from_numpy(masks[order]))
            and not batch.target[:, 24:].any()
        )
        assert (
            torch.equal(batch.certainty[:, :24], torch.from_numpy(label.certainty[order]))
            and not batch.certainty[:, 24:].any()
        )
        assert batch.backup.tolist() == label.points[order].tolist() and batch.task.tolist() == [0, 0]
        assert torch.equal(batch.pixels[0], model.preprocess(images[2].image))


def test_human_images_are_equally_likely(model, human):
    seen = [human.draw(model, 1, rng(seed)) for seed in range(200)]
    assert len(human) == 12 and 70 < sum(batch.task.item() == 1 for batch in seen) < 130
    assert len({float(batch.pixels.sum()) for batch in seen}) >= 6  # the two sets show the same six scenes


def dotted(folder: Path, *sides: int) -> Dataset:
    """Images of 2000 x 2000 pixels with squares of the sides as masks, all of them in each image."""
    masks = np.zeros((len(sides), 2000, 2000), bool)
    for mask, side in zip(masks, sides):
        mask[100 : 100 + side, 100 : 100 + side] = True
    load = lambda: (np.zeros((2000, 2000, 3), np.uint8), masks, {})
    return Dataset("dots", 2, [Entry(f"d{k}", folder / f"d{k}.png", load) for k in range(2)])


def test_masks_that_vanish_at_the_models_size_are_not_drawn_but_counted(model, tmp_path, capsys):
    source = HumanSource([dotted(tmp_path, 3, 900, 5, 500)])
    for seed in range(4):
        batch = source.draw(model, 3, rng(seed))
        assert batch.target.flatten(1).any(1).all() and batch.target.flatten(1).sum(1).unique().numel() == 2
    assert (
        set(source.vanished.masks.values()) == {2} and "2 masks of 1 images so far" in capsys.readouterr().out
    )
    with pytest.raises(ValueError, match="dots: no mask of image 'd[01]' is left at the model's size"):
        HumanSource([dotted(tmp_path, 3)]).draw(model, 1, rng())


@pytest.mark.parametrize("kind", ["sam", "refined"])
def test_pseudo_labels_that_vanish_are_not_drawn_but_counted(model, tmp_path, kind):
    images = dotted(tmp_path, 3, 900)
    masks = images[0].masks
    label = SimpleNamespace(
        masks=masks, refined=masks, points=np.full((2, 2), 101.0), certainty=np.ones(masks.shape, np.float32)
    )
    source = PseudoSource(images, Labels({"d1": label}), kind)
    area = source.draw(model, 2, rng()).target.flatten(1).sum(1)
    assert area[0] == area[1] > 150  # the large one, twice: about 14 of 32 pixels a side
    assert source.vanished.masks == {("dots", "d1"): 1}


def test_pseudo_labels_of_an_image_that_has_changed_its_size_are_refused(model, root):
    images = open_dataset("SA-1B", root)
    label = pseudo_label(make_scene(0))
    for name, value in vars(label).items():
        setattr(label, name, value[:, :20] if value.ndim == 3 else value)
    source = PseudoSource(images, Labels({images.names[0]: label}), "sam")
    with pytest.raises(
        ValueError, match="labels.parquet: image 'sa_0' is 24 x 32, its masks were made at 20 x 32"
    ):
        source.draw(model, 1, rng())


def test_bad_samples_are_left_out_and_counted(model, tmp_path):
    write_dataset("EntitySeg", tmp_path, [make_scene(seed) for seed in range(3)])
    broken = sorted(tmp_path.rglob("*.jpg"))[1]
    broken.write_bytes(broken.read_bytes()[:50])
    source = HumanSource([open_dataset("EntitySeg", tmp_path)])
    assert len(source) == 2 and [bad.path for bad in source.datasets[0].bad] == [broken]
    assert source.datasets[0].report().startswith("EntitySeg: 1 bad samples, 0 single masks left out\n")
    assert len({float(source.draw(model, 1, rng(seed)).pixels.sum()) for seed in range(20)}) == 2


# ---- whole runs --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """The smoke configuration on the small scenes, with a random foundation model and its pseudo-labels."""
    folder = tmp_path_factory.mktemp("whole")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sam = load_sam("micro")
    save_sam(folder / "sam.safetensors", sam, {"model_type": "micro"})
    config = replace(
        SMOKE,
        data=replace(SMOKE.data, root=str(root)),
        model=replace(SMOKE.model, checkpoint=str(folder / "sam.safetensors"), sha256=None),
    )
    return config, pseudo_labels(config, folder / "labels")


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_the_same_seed_gives_the_same_weights(whole):
    config, labels = whole
    (first, log), (again, same) = (finetune(config, config.run("sum-medium"), labels) for _ in range(2))
    assert log.equals(same) and list(log.columns) == ["step", "first_round", "last_round", "gradient_norm"]
    assert (
        all(torch.equal(value, weights(again)[name]) for name, value in weights(first).items())
        and not first.training
    )
    other, _ = finetune(config, config.run("sum-medium-seed1"), labels)
    assert not torch.equal(
        other.sam.mask_decoder.mask_tokens.weight, first.sam.mask_decoder.mask_tokens.weight
    )


def test_a_killed_run_ends_with_the_same_weights(whole, tmp_path, monkeypatch):
    config, labels = whole
    run = config.run("sum-medium")
    expected, _ = finetune(config, run, labels)
    with monkeypatch.context() as patch:
        steps = []

        def dying(*args, **options):
            steps.append(1)
            if len(steps) == 2:
                raise KeyboardInterrupt
            return interactive_step(*args, **options)

        patch.setattr("sumlib.train.method.interactive_step", dying)
        with pytest.raises(KeyboardInterrupt):
            finetune(config, run, labels, resume=tmp_path / "run.pt")
    assert (tmp_path / "run.pt").exists()
    resumed, log = finetune(config, run, labels, resume=tmp_path / "run.pt")
    assert len(log) == 2 and all(
        torch.equal(value, weights(expected)[name]) for name, value in weights(resumed).items()
    )


def test_a_checkpoint_is_of_its_code_and_data(whole, tmp_path, monkeypatch):
    config, labels = whole
    run = config.run("sum-medium")
    human, unlabeled = open_sources(config, run, labels)
    method = load_method(run.method)(run, config.finetune)
    found = partial(fingerprint_of, config, run, method, labels=labels)
    before = found((human, unlabeled))
    assert found(open_sources(config, run, labels)) == before
    samples = [dataset[k] for dataset in human.datasets for k in range(len(dataset))]
    image = samples[0].image.copy()
    image[0, 0, 0] ^= 1
    other = SimpleNamespace(datasets=[[replace(samples[0], image=image), *samples[1:]]])
    same = SimpleNamespace(datasets=[samples])
    assert found((other, unlabeled)) != found((same, unlabeled))
    for module, old, new in (
        ("losses.py", "return ", "return 2 * "),
        ("model/fast_decoder.py", "return ", "return 2 * "),
    ):
        root = changed_package(tmp_path / module, module, old, new)
        with monkeypatch.context() as patch:
            patch.setattr("sumlib.base.code.ROOT", root)
            assert found((human, unlabeled)) != before
    root = changed_package(tmp_path / "u2pl", "methods/u2pl.py", "return ", "return 2 * ")  # not this method
    monkeypatch.setattr("sumlib.base.code.ROOT", root)
    assert found((human, unlabeled)) == before


@pytest.mark.parametrize(
    ("run", "moved"),
    [
        ("human-medium", set()),
        ("sum-no-task-prompt-medium", set()),
        ("mask-refinement-medium", set()),
        ("sum-small", {0, 1}),
    ],
)
def test_task_vectors_move_only_where_the_run_trains_them(whole, run, moved):
    config, labels = whole
    setting = config.run(run)
    model, _ = finetune(config, setting, labels if setting.unlabeled else None)
    norms = model.task_prompt.weight.norm(dim=1)
    assert {task for task in range(4) if norms[task] > 0} == moved


def test_a_run_without_its_labels_says_what_to_do(whole, tmp_path):
    config, _ = whole
    with pytest.raises(FileNotFoundError, match="no pseudo-labels there; run `dvc repro pseudo_label`"):
        finetune(config, config.run("sum-medium"), tmp_path / "medium.parquet")


@pytest.mark.parametrize(
    ("name", "tuning"),
    [
        ("human-small", "decoder"),
        ("human-small", "adapter"),
        ("human-small", "lora"),
        ("sum-small", "adapter"),
    ],
)
def test_lightweight_runs_leave_the_encoders_own_weights_alone(whole, name, tuning, tmp_path):
    config, labels = whole
    run, still = replace(config.run(name), tuning=tuning), tuning != "lora"
    model, _ = finetune(config, run, labels if run.unlabeled else None)
    foundation = Sum(load_sam("micro", config.checkpoint)).state_dict()
    same = {
        key: torch.equal(value, foundation[key])
        for key, value in model.state_dict().items()
        if key in foundation
    }
    encoder = {key for key in same if key.startswith("sam.image_encoder.")}
    assert {key for key in encoder if not same[key]} == (
        set() if still else {key for key in encoder if key.endswith("attn.qkv.weight")}
    )
    assert not all(same[key] for key in same if key.startswith("sam.mask_decoder."))
    adapters = {key for key in model.state_dict() if ".adapter." in key}
    assert (
        bool(adapters) == (run.tuning == "adapter") and foundation.keys() - model.state_dict().keys() == set()
    )
    save_sum(tmp_path / "run.safetensors", model, {"model_type": "micro"})
    again = load_sum(tmp_path / "run.safetensors")
    pixels = torch.randn(1, 3, 64, 64, generator=rng())
    with torch.no_grad():
        assert torch.equal(again.encode(pixels), model.encode(pixels))


def test_theta_and_uncertainty_of_a_run_are_its_own(whole):
    config, labels = whole
    run = config.run("sum-small")
    expected = weights(finetune(config, run, labels)[0])
    for change in (
        {"theta": 0.99},
        {"uncertainty": "confidence"},
        {"method": "discrepancy", "uncertainty": "discrepancy"},
        {"method": "discrepancy", "uncertainty": "two-decoders"},
        {"method": "u2pl", "contrast": 1.0},
    ):
        found = weights(finetune(config, replace(run, **change), labels)[0])
        assert any(not torch.equal(value, expected[name]) for name, value in found.items()), change
    assert all(
        torch.equal(value, expected[name])
        for name, value in weights(
            finetune(config, replace(run, theta=config.finetune.theta), labels)[0]
        ).items()
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *(
            ("vanilla-small", {"method": "augseg", "consistency": kind})
            for kind in ("mixed", "mixed-multi", "box", "uniform-point")
        ),
        ("sum-small", {"method": "discrepancy", "uncertainty": "discrepancy"}),
        ("sum-small", {"method": "augseg", "consistency": "mixed"}),
        ("sum-small", {"method": "discrepancy", "uncertainty": "two-decoders"}),
        ("sum-small", {"method": "u2pl", "contrast": 1.0}),
        ("human-small", {"method": "hq_sam"}),
        ("sum-small", {"method": "hq_sam"}),
    ],
)
def test_other_methods_repeat_and_resume(whole, name, change, tmp_path, monkeypatch):
    config, labels = whole
    run = replace(config.run(name), **change)
    expected, log = finetune(config, run, labels)
    assert len(log) == 2 and np.isfinite(log.to_numpy()).all()
    before = Sum(load_sam("micro", config.checkpoint)).state_dict()
    assert any(
        not torch.equal(value, before[key]) for key, value in weights(expected).items() if key in before
    ) == (run.method != "hq_sam")  # that one is frozen
    steps = []

    def dying(self, *args):
        steps.append(1)
        if len(steps) == 2:
            raise KeyboardInterrupt
        return follow(self, *args)

    if run.consistency == "none" and run.uncertainty != "discrepancy":  # has no teacher to interrupt
        again, _ = finetune(config, run, labels)
        assert all(torch.equal(value, weights(expected)[key]) for key, value in weights(again).items())
        return
    follow = Teacher.follow
    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "follow", dying)
        with pytest.raises(KeyboardInterrupt):
            finetune(config, run, labels, resume=tmp_path / "run.pt")
    resumed, _ = finetune(config, run, labels, resume=tmp_path / "run.pt")
    assert all(torch.equal(value, weights(expected)[key]) for key, value in weights(resumed).items())


def test_students_learn_the_teachers_masks_on_another_view(model, human, pseudo, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "sumlib.methods.augseg.interactive_step",
        lambda model, batch, *args, **options: seen.append((batch, options)) or {},
    )
    batch = collate([pseudo.draw(model, 3, rng())])
    for kind, rounds in (("mixed", 1), ("box", 1), ("mixed-multi", CONFIG.rounds)):
        method = AugSeg(replace(RUNS["vanilla"], method="augseg", consistency=kind), CONFIG)
        method.accompany(model)
        method.learn_from_teacher(model, batch, rng(1))
        lesson, options = seen.pop()
        assert (
            options["rounds"] == rounds
            and not torch.equal(lesson.pixels, batch.pixels)
            and (lesson.certainty == 1).all()
        )
        assert torch.equal(
            lesson.target, method.companion.predict(batch.pixels, batch.image, options["first"], CONFIG.bf16)
        )


@pytest.mark.parametrize(("kind", "boxes"), [("box", 60), ("uniform-point", 0), ("mixed", None)])
def test_first_prompts_are_of_their_kind(kind, boxes):
    target = torch.zeros(60, 32, 32, dtype=torch.bool)
    target[:, 4:12, 6:20] = True
    pixels = torch.ones(2, 3, 32, 32)
    pixels[:, :, 24:] = 0  # padding
    batch = Batch(
        pixels,
        torch.arange(60) % 2,
        target,
        torch.ones(target.shape),
        torch.full((60, 2), -1.0),
        torch.zeros(60, dtype=torch.long),
    )
    xy, codes = parts_of(first_prompt(batch, None, rng(), 0.1, kind))
    boxed = codes[:, 0] == 2
    assert boxed.sum() == boxes if boxes is not None else 15 < boxed.sum() < 45
    x, y = xy[~boxed, 0].long().unbind(1)
    hit = target[0][y, x]
    assert (y < 24).all() and (kind != "mixed" or hit.all()) and (kind != "uniform-point" or not hit.all())


def test_an_unknown_kind_of_first_prompt_is_refused():
    with pytest.raises(ValueError, match="no kind of first prompt 'mixd'; the nearest are: mixed"):
        first_prompt(hand_batch(square((2, 2, 9, 9))), None, rng(), 0.1, "mixd")


def test_consistency_beside_pseudo_labels_shares_their_weight(whole, monkeypatch):
    config, labels = whole
    seen = []

    def step(model, batch, run, config, generator, share, **options):
        seen.append((share, len(batch.target), bool(options)))
        return interactive_step(model, batch, run, config, generator, share, **options)

    for module in ("train.method", "methods.augseg"):
        monkeypatch.setattr(f"sumlib.{module}.interactive_step", step)
    finetune(config, replace(config.run("sum-small"), method="augseg", consistency="mixed"), labels)
    (human, h, _), (lesson, n, special), (own, m, _) = seen[:3]
    assert (
        n == m
        and special
        and lesson == own
        and human + 2 * own == pytest.approx(1)
        and human / h == pytest.approx(2 * own / n)
    )


@pytest.mark.parametrize("uncertainty", ["refinement", "discrepancy", "two-decoders"])
def test_one_process_trains_as_two_do_to_the_bit(whole, monkeypatch, uncertainty):
    config, labels = whole
    config, found = replace(config, finetune=replace(config.finetune, shares=2)), []
    for processes in ("1", "2"):
        monkeypatch.setenv("SUM_PROCESSES", processes)
        method = "sum" if uncertainty == "refinement" else "discrepancy"
        run = replace(config.run("sum-small"), method=method, uncertainty=uncertainty)
        found.append(finetune(config, run, labels))
    (one, log), (two, other) = found
    assert log.equals(other) and all(
        torch.equal(value, weights(two)[key]) for key, value in weights(one).items()
    )


def test_the_second_decoder_learns_by_itself_and_is_thrown_away(whole, monkeypatch):
    config, labels = whole
    learners = []

    def step(model, batch, *args, **options):
        learners.append((isinstance(model.sam.image_encoder, torch.nn.Identity), options.get("rounds")))
        before = weights(model)
        found = interactive_step(model, batch, *args, **options)
        assert (
            any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.sam.mask_decoder.parameters())
            and before.keys() == weights(model).keys()
        )
        return found

    monkeypatch.setattr("sumlib.methods.discrepancy.interactive_step", step)
    model, _ = finetune(
        config, replace(config.run("sum-small"), method="discrepancy", uncertainty="two-decoders"), labels
    )
    assert (
        learners.count((True, 1)) == config.finetune.iterations
        and learners.count((False, None)) == config.finetune.iterations
    )
    assert weights(model).keys() == weights(Sum(load_sam("micro", config.checkpoint))).keys()


def test_a_run_starts_from_its_backbone(whole, tmp_path):
    config, labels = whole
    save_sam(tmp_path / "b.safetensors", load_sam("micro_b"), {"model_type": "micro_b"})
    small = replace(config.backbones.vit_b, checkpoint=str(tmp_path / "b.safetensors"), sha256=None)
    config = replace(config, backbones=replace(config.backbones, vit_b=small))
    model, _ = finetune(config, replace(config.run("sum-small"), backbone="vit_b"), labels)
    assert len(model.sam.image_encoder.blocks) == 2


def test_a_pseudo_labelled_image_that_is_gone_is_named(root):
    images = open_dataset("SA-1B", root)
    with pytest.raises(
        ValueError, match=r"labels\.parquet: image 'gone' is not in SA-1B; restore the image, or"
    ):
        PseudoSource(images, Labels({"gone": pseudo_label(make_scene(0))}), "sam")
