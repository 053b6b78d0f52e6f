"""Rings around parts, counted pixel by pixel; shares and their intervals."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scenes import make_scene
from small import small_sum

from sumlib.analysis.rims import SIDES, painted_share, ring_errors
from sumlib.config.params import load_config
from sumlib.data.registry import open_dataset
from sumlib.evaluate import interact
from sumlib.figures.rims import rims_figure
from sumlib.micro.export import write_dataset

RUN = replace(load_config("smoke").run("sum-medium"), task_prompt="none")


@pytest.fixture(scope="module")
def dev(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_dataset("dev", root, [make_scene(seed, (32, 32)) for seed in range(3)])
    return open_dataset("dev-part", root), open_dataset("dev-entity", root)


@pytest.fixture(scope="module")
def errors(dev):
    return ring_errors(small_sum(2), *dev, run=RUN, trained_tasks=(), width=2)


def test_every_pixel_of_the_ring_is_counted_on_its_side(dev, errors):
    model, (parts, entities) = small_sum(2), dev
    expected = []
    for sample in parts:
        every = entities[entities.names.index(sample.name)].masks
        target = torch.from_numpy(sample.masks)
        with torch.no_grad():
            embedding = model.encode(model.preprocess(sample.image)[None])
        masks = interact(
            model,
            embedding,
            torch.zeros(len(target), dtype=torch.long),
            target,
            prompt="point",
            setting="oracle",
            rounds=1,
            keep=True,
        )[0][2]
        for k, part in enumerate(sample.masks):
            owner = max(every, key=lambda entity: (entity & part).sum())
            count = dict.fromkeys(SIDES, (0, 0))
            for y, x in zip(*np.nonzero(~part)):
                if not part[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3].any():
                    continue
                side = SIDES[1] if owner[y, x] else SIDES[0]
                if side == SIDES[0] and any(entity[y, x] for entity in every):
                    continue  # another object
                count[side] = (count[side][0] + 1, count[side][1] + int(masks[k, y, x]))
            expected += [
                (RUN.name, sample.name, k, side, *numbers) for side, numbers in count.items() if numbers[0]
            ]
    expected = pd.DataFrame(expected, columns=errors.columns)
    order = ["image", "mask", "side"]
    pd.testing.assert_frame_equal(
        errors.sort_values(order, ignore_index=True), expected.sort_values(order, ignore_index=True)
    )
    assert set(errors["side"]) == set(SIDES) and errors["painted"].sum() > 0


def test_shares_pool_the_pixels_and_lie_in_their_interval(errors):
    shares = painted_share(errors, np.random.default_rng(0), draws=200)
    for side, rows in errors.groupby("side"):
        row = shares[shares["side"] == side].iloc[0]
        assert (
            row["share"] == pytest.approx(100 * rows["painted"].sum() / rows["pixels"].sum())
            and row["low"] <= row["share"] <= row["high"]
        )
    pd.testing.assert_frame_equal(shares, painted_share(errors, np.random.default_rng(0), draws=200))


def test_the_figure_names_every_run(errors):
    both = pd.concat([errors, errors.assign(run="sam")])
    figure = rims_figure(
        painted_share(both, np.random.default_rng(0), draws=20),
        {"sam": ("SAM", "none"), RUN.name: ("SUM", "FT-Medium")},
    )
    assert [axes.get_title() for axes in figure.axes] == [f"towards the {side}" for side in SIDES]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["SAM", "SUM, FT-Medium"]
