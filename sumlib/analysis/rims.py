"""Where a mask is painted too wide: the ring around a part, towards the background and towards the rest of
its object.

Fine-tuning on salient objects and entities shows a model where an object ends, never where a part ends inside
it. The two sides of a part's ring tell how far what was learnt at the former edges carries over to the
latter.
"""

from collections.abc import Collection, Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sumlib.base.masks import dilate
from sumlib.config.runs import RunConfig
from sumlib.data.dataset import Dataset, Sample
from sumlib.evaluate import one_click
from sumlib.model.sum import Sum
from sumlib.report.intervals import RESAMPLES, interval, resample

SIDES = ("background", "same object")


def _owners(parts: Sample, entities: Sample) -> Tensor:
    """The entity of each part, (M, H, W) bool: the one with which it shares most pixels."""
    part, entity = (torch.from_numpy(sample.masks).flatten(1).float() for sample in (parts, entities))
    return torch.from_numpy(entities.masks)[(part @ entity.T).argmax(1)]


def _pairs(parts: Dataset, entities: Dataset) -> Iterator[tuple[Sample, Sample]]:
    place = {name: k for k, name in enumerate(entities.names)}
    for name, sample in zip(parts.names, parts):
        yield sample, entities[place[name]]


def ring_errors(
    model: Sum,
    parts: Dataset,
    entities: Dataset,
    *,
    run: RunConfig,
    trained_tasks: Collection[int],
    width: int = 2,
) -> pd.DataFrame:
    """Pixels of the ring of ``width`` around each part that the model paints at 1 point (oracle setting), by
    side.

    ``parts`` and ``entities`` are the masks of the same images. Columns: run, image, mask, side (`SIDES`),
    pixels, painted; a side without pixels has no row.
    """
    model.eval()
    rows = []
    task = parts.task if parts.task in trained_tasks else 0
    for part, entity in _pairs(parts, entities):
        target, owner = torch.from_numpy(part.masks), _owners(part, entity)
        painted = one_click(model, part, target, run=run, task=task)
        ring = dilate(target, width) & ~target
        others = (
            torch.from_numpy(entity.masks).any(0) & ~owner
        )  # other objects are neither background nor the same object
        for side, region in zip(SIDES, (ring & ~owner & ~others, ring & owner)):
            pixels, wrong = region.flatten(1).sum(1).tolist(), (region & painted).flatten(1).sum(1).tolist()
            rows += [(run.name, part.name, k, side, p, w) for k, (p, w) in enumerate(zip(pixels, wrong)) if p]
    return pd.DataFrame(rows, columns=["run", "image", "mask", "side", "pixels", "painted"])


def painted_share(
    errors: pd.DataFrame, generator: np.random.Generator, draws: int = RESAMPLES
) -> pd.DataFrame:
    """Share of the ring that is painted (%), with a 95 % interval by bootstrap over images.

    ``errors`` as from `ring_errors`. Columns: run, side, share, low, high.
    """
    counts = errors.pivot_table(
        index="image", columns=["run", "side"], values=["pixels", "painted"], aggfunc="sum", fill_value=0
    )
    weights = resample(len(counts), generator, draws, one_by_one=True)
    shares = []
    for run in errors["run"].unique():
        for side in SIDES:
            pixels, painted = (counts[name, run, side].to_numpy(float) for name in ("pixels", "painted"))
            share = interval(
                100 * painted.sum() / pixels.sum(), 100 * (weights @ painted) / (weights @ pixels)
            )
            shares.append((run, side, share.value, share.low, share.high))
    return pd.DataFrame(shares, columns=["run", "side", "share", "low", "high"])
