"""The memory of a training step: counted on tensors without data, and measured."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sumlib.model.checkpoint import load_sam
from sumlib.pipeline.own.memory import LiveTensors, count_step, main, measure_step
from sumlib.pipeline.own.recipes import RECIPES

MB = 2**20


def test_what_is_alive_together_is_added_up():
    with FakeTensorMode(), LiveTensors() as live:
        a = torch.zeros(MB // 4)  # 1 MB
        b = a + 1
        a.view(2, -1)  # no memory of its own
        assert live.live == live.peak == 2 * MB
        del a
        assert (live.live, live.peak) == (MB, 2 * MB)
        c = torch.cat([b, b])
        assert (live.live, live.peak) == (3 * MB, 3 * MB)
        assert live.at_peak["cat.default (524288,)"] == 2 * MB
        if c.sum() > 0:  # numbers are one, questions are answered with yes
            assert c.sum().item() == 1.0


def test_what_a_gradient_needs_is_alive_until_then():
    with FakeTensorMode(), LiveTensors() as live:
        weight = torch.zeros(256, 256, requires_grad=True)  # 1/4 MB
        x = torch.zeros(1024, 256)  # 1 MB
        y = (x @ weight).sigmoid()  # 1 MB is kept, the product is not
        loss = y.sum()
        assert live.live == 9 * MB / 4 + 4
        loss.backward()
        del loss, y
        assert live.live == 6 * MB / 4  # with the weight's gradient
        assert live.peak > 9 * MB / 4


@pytest.fixture(scope="module")
def counted():
    """A small model's steps, by what is changed in a recipe."""
    recipe = replace(RECIPES["8gb"], light_attention=False, checkpointing=False, bf16=False)
    count = lambda tuned, **changes: count_step("micro", tuned, replace(recipe, **changes), rounds=2)
    return {
        "plain": count("full"),
        "light": count("full", light_attention=True, checkpointing=True),
        "more": count("full", prompts_at_once=8),
        "decoder": count("decoder"),
    }


def test_the_count_knows_the_model_and_its_optimiser(counted):
    weights = sum(p.numel() for p in load_sam("micro").parameters())
    assert weights * 4 <= counted["plain"].weights <= weights * 4 + 4096  # and the task prompt
    assert 7.9 * weights < counted["plain"].optimiser < 8.1 * weights
    assert counted["decoder"].optimiser < counted["plain"].optimiser / 2
    assert counted["plain"].total == sum(
        getattr(counted["plain"], part) for part in ("weights", "optimiser", "step")
    )


def test_recipes_do_what_they_say(counted):
    assert counted["light"].step < counted["plain"].step
    assert counted["decoder"].step < counted["plain"].step
    assert counted["plain"].step < counted["more"].step < 2 * counted["plain"].step
    assert counted["plain"].largest[0][1] <= counted["plain"].step


def test_the_count_is_near_what_is_measured(counted):
    """Of a large step, beside which what a process needs for itself is small."""
    recipe, options = "8gb", {"prompts": 160, "rounds": 2}
    size = count_step("micro_b", "decoder", RECIPES[recipe], **options)
    measured = measure_step("micro_b", "decoder", recipe, **options)
    assert 0.8 < measured["above"] / (size.step + size.optimiser) < 2


def test_the_command_prints_a_table(capsys):
    main(["count", "--backbone", "micro_b", "--tuning", "decoder", "--recipe", "8gb", "--rounds", "1"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("| micro_b | decoder | 0.")
