"""Pre-training of the micro SAM: equal scenes for any workers, resuming, a gate by hand."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small import small_sum

from sumlib.base.paths import SAMPLE
from sumlib.config.params import load_config
from sumlib.data.registry import open_dataset
from sumlib.metrics import mask_iou
from sumlib.micro.gate import coarse_examples, gate, stored_examples
from sumlib.micro.pretrain import Pretraining, human_clicks, mask_loss, pretrain
from sumlib.micro.scene_store import SMALLEST, Batches, make_store
from sumlib.micro.world import SIZE, coarse
from sumlib.sampler import first_click, next_click
from sumlib.train.loop import Checkpoint

SHIPPED = load_config("smoke").pretrain
CONFIG = replace(
    SHIPPED["micro"], scenes=6, iterations=4, finish=1, dense_only=0.5, images=2, prompts=2, workers=1, seed=3
)


@pytest.fixture(scope="module")
def store():
    return make_store(6, seed=5, workers=1)


@pytest.fixture(scope="module")
def model():
    return small_sum(1, size=SIZE)


def test_scenes_are_the_same_whatever_the_workers():
    one, two = (make_store(252, seed=5, workers=workers) for workers in (1, 2))  # a block and a bit
    for name in ("images", "exact", "coarse", "level", "start"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    assert len(one.images) == 252 == len(one.start) - 1
    assert not np.array_equal(one.images[0], make_store(1, seed=6, workers=1).images[0])


def test_store_keeps_exact_and_coarse_masks_of_every_level(store):
    levels = set()
    for index in range(6):
        rough, exact, level = store.masks(index)
        assert rough.shape == exact.shape == (len(level), SIZE, SIZE) and len(level)
        assert np.array_equal(rough, [coarse(mask) for mask in exact])
        assert exact.sum((1, 2)).min() >= SMALLEST
        levels |= set(level)
        for group in exact[level == 1]:  # a group is at least two whole entities
            inside = [mask for mask in exact[level == 2] if (mask & group).any()]
            assert len(inside) >= 2 and all((mask & group).sum() == mask.sum() for mask in inside)
    assert levels >= {2, 3}


def test_batches_move_masks_with_their_image(store):
    batch = Batches(store, 0).draw(4, 3)
    assert batch["images"].shape == (4, SIZE, SIZE, 3) and batch["exact"].shape == (12, SIZE, SIZE)
    assert torch.equal(batch["image"], torch.arange(4).repeat_interleave(3))
    for k, exact in enumerate(batch["exact"]):
        rough = torch.from_numpy(coarse(exact.numpy()))
        found = batch["all"][batch["image"][k], batch["mask"][k]]
        assert (
            mask_iou(rough[None], found[None]) > 0.9
        )  # coarse() of a turned mask, to a pixel here and there
    assert all(torch.equal(value, Batches(store, 0).draw(4, 3)[key]) for key, value in batch.items())


def test_mask_loss_by_hand():
    logits, target = torch.tensor([[0.0, 0.0]]), torch.tensor([[True, False]])
    assert mask_loss(logits, target).item() == pytest.approx(4 * np.log(2) + 1 - 2 / 3)


def test_the_late_loss_has_sams_focal_term():
    logits, target = torch.randn(2, 3, 64), torch.rand(2, 3, 64) > 0.5
    plain, late = (mask_loss(logits, target, late) for late in (False, True))
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, target.float(), reduction="none").mean(
        -1
    )
    p_right = torch.where(target, logits.sigmoid(), 1 - logits.sigmoid())
    focal = (torch.where(target, 0.25, 0.75) * (1 - p_right) ** 2 * -p_right.log()).mean(-1)
    assert late.shape == (2, 3) and torch.allclose(late, plain - 2 * bce + 20 * focal, atol=1e-5)


def test_the_learning_rate_falls_and_rises_once_more():
    config = SHIPPED["micro"]
    rate = [config.lr_at(step) for step in range(config.steps)]
    assert (
        max(rate) <= config.lr and rate[99] > 50 * rate[0] and rate[config.iterations - 1] < 0.02 * config.lr
    )
    assert (
        max(rate[config.iterations :]) == pytest.approx(config.finish_lr, rel=0.02)
        and rate[-1] < 0.02 * config.finish_lr
    )


def test_human_clicks_by_eye_are_against_the_object_not_its_label():
    exact = torch.zeros(40, 9, 9, dtype=torch.bool)
    exact[:, 3:6, 3:6] = True
    label = torch.zeros_like(exact)
    label[:, 2:7, 2:7] = True  # a pixel too wide
    by_eye = torch.arange(40) < 20
    point, code = human_clicks(label, exact, label, by_eye, torch.Generator().manual_seed(0))
    assert (code[:20] == 0).all() and (code[20:] == -1).all()  # by eye the rim is wrong, by its label nothing
    assert all(label[0, y, x] and not exact[0, y, x] for x, y in point[:20].tolist())
    point, code = human_clicks(
        label, exact, torch.zeros_like(label), by_eye, torch.Generator().manual_seed(0)
    )
    assert (code == 1).all() and all(exact[0, y, x] for x, y in point[:20].tolist())
    middle = (point == 4).all(1)
    assert 10 <= middle.sum() <= 32 and any(
        not exact[0, y, x] for x, y in point[20:].tolist()
    )  # half in the middle, half anywhere


# ---- resuming ------------------------------------------------------------------------------------


class Dying(Pretraining):
    """Killed in its fourth iteration; what it did after its last checkpoint is lost."""

    def begin(self, number):
        super().begin(number)
        if number == 3:
            raise KeyboardInterrupt


def test_a_resumed_pretraining_gives_the_same_weights(store, tmp_path):
    whole = Pretraining(CONFIG, bf16=False)
    start = {name: value.clone() for name, value in whole.model.state_dict().items()}
    log = whole.fit(store)  # two with the auxiliary heads alone, two interactive, one of the finish
    assert len(log) == 5 and np.isfinite(log["loss"]).all()
    checkpoint = Checkpoint(tmp_path / "last.pt")
    with pytest.raises(KeyboardInterrupt):
        Dying(CONFIG, bf16=False).fit(store, every=2, checkpoint=checkpoint)
    assert checkpoint.path.exists()
    resumed = Pretraining(CONFIG, bf16=False)
    assert resumed.fit(store, every=2, checkpoint=checkpoint).equals(log)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    moved = {name for name, value in whole.model.state_dict().items() if not torch.equal(value, start[name])}
    assert {"sam.image_encoder.blocks.0.attn.qkv.weight", "sam.mask_decoder.mask_tokens.weight"} <= moved
    assert "task_prompt.weight" not in moved and not whole.model.task_prompt.weight.any()


def test_pretrain_keeps_a_log_and_goes_on_from_its_last_state(tmp_path, capsys):
    config = replace(CONFIG, iterations=1, scenes=3)
    model = pretrain(config, tmp_path, bf16=False, held_out=2)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2] and all(
        len(rows[0][level]) == 6 for level in ("entity", "part")
    )
    capsys.readouterr()
    again = pretrain(config, tmp_path, bf16=False, held_out=2)  # nothing left to do
    assert capsys.readouterr().out == "last.pt: resuming after step 2\n"
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    pretrain(replace(config, seed=4), tmp_path, bf16=False, held_out=2)
    message = "last.pt: the checkpoint is of another configuration, code or data; starting anew\n"
    assert capsys.readouterr().out == message


# ---- the gate ------------------------------------------------------------------------------------


def test_gate_by_hand(model, store):
    rough, _, level = store.masks(0)
    target = torch.from_numpy(rough[level == 2][:1])
    found = gate(model, [(store.images[0], target.numpy(), "entity")], rounds=2)
    with torch.no_grad():
        embedding = model.encode(
            model.sam.preprocess(torch.from_numpy(store.images[0]).permute(2, 0, 1)[None].float())
        )
        first, _ = model.decode(embedding, points=first_click(target)[:, None], labels=torch.ones(1, 1))
        three = [mask_iou(first[:, k] > 0, target).item() for k in (1, 2, 3)]
        shown = first[:, 1 + int(np.argmax(three))][:, None]
        new, label = next_click(target, shown[:, 0] > 0)
        points, labels = (
            torch.stack([first_click(target)[0], new[0]])[None],
            torch.tensor([[1, label.item()]]),
        )
        second, _ = model.decode(embedding, points=points, labels=labels, mask_inputs=shown)
    expected = [100 * max(three), 100 * mask_iou(second[:, 0] > 0, target).item()]
    assert found == {"entity": pytest.approx(expected, abs=1e-4)}


def test_gate_measures_masks_not_images(model, store):
    examples = [example for example in stored_examples(store, 4) if example[2] == "part"]
    counts = [len(masks) for _, masks, _ in examples]
    each = [gate(model, [example], rounds=1)["part"][0] for example in examples]
    assert len(set(counts)) > 1 and gate(model, examples, rounds=1)["part"][0] == pytest.approx(
        np.average(each, weights=counts), abs=1e-3
    )


def test_gate_takes_a_store_or_data_sets(model, store):
    examples = list(stored_examples(store, 3))
    assert [level for *_, level in examples] == ["entity", "part"] * 3
    samples = {
        level: [SimpleNamespace(image=image, masks=masks) for image, masks, name in examples if name == level]
        for level in ("entity", "part")
    }
    for (image, masks, _), sample in zip(
        [e for e in examples if e[2] == "part"], coarse_examples({"part": samples["part"]}), strict=True
    ):
        assert np.array_equal(image, sample[0]) and np.array_equal(
            [coarse(mask) for mask in masks], sample[1]
        )
    dev = {level: open_dataset(f"dev-{level}", SAMPLE)[:2] for level in ("entity", "part")}
    found = gate(model, coarse_examples(dev), rounds=2)
    assert list(found) == ["entity", "part"] and all(
        len(row) == 2 and 0 <= min(row) <= max(row) <= 100 for row in found.values()
    )
    assert model.training
