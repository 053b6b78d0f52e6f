"""Scenes of the micro world in memory, and the batches that pre-training draws from them."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sumlib.micro.sets import broad_style
from sumlib.micro.world import SIZE, coarse, make_scene

SMALLEST = 14
"""Pixels of the smallest masks it is trained on; smaller than those of any data set."""


@dataclass(frozen=True)
class Store:
    """Scenes in memory: images (N, H, W, 3) uint8, packed masks and where each image's masks lie."""

    images: np.ndarray
    exact: np.ndarray
    coarse: np.ndarray
    level: np.ndarray
    start: np.ndarray

    def masks(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coarse masks (M, H, W) bool, exact masks (M, H, W) bool, levels (M,) 1 group, 2 entity, 3 part."""
        rows = slice(self.start[index], self.start[index + 1])
        shape = (-1, SIZE, SIZE)
        return (
            np.unpackbits(self.coarse[rows], axis=1).reshape(shape).astype(bool),
            np.unpackbits(self.exact[rows], axis=1).reshape(shape).astype(bool),
            self.level[rows],
        )


def _some_scenes(seed: int, count: int) -> tuple:
    rng = np.random.default_rng(seed)
    images, exact, rough, level, sizes = [], [], [], [], []
    for _ in range(count):
        scene = make_scene(rng, replace(broad_style(rng), smallest=SMALLEST))
        found = [(2, m) for m in scene.masks("entity")] + [(3, m) for m in scene.masks("part")]
        if (
            len(scene.masks("entity"))
            and scene.entity_map[scene.salient].min() != scene.entity_map[scene.salient].max()
        ):
            found.append((1, scene.salient))
        images.append(scene.image)
        level += [k for k, _ in found]
        exact += [np.packbits(m) for _, m in found]
        rough += [np.packbits(coarse(m)) for _, m in found]
        sizes.append(len(found))
    return np.stack(images), np.stack(exact), np.stack(rough), np.array(level), np.array(sizes)


def make_store(count: int, seed: int, workers: int = 2) -> Store:
    """Generate ``count`` scenes in blocks, the same ones whatever the number of workers."""
    block = 250
    sizes = [block] * (count // block) + ([count % block] if count % block else [])
    seeds = [seed * 100_003 + i for i in range(len(sizes))]
    with ProcessPoolExecutor(workers) as pool:
        parts = list(zip(*pool.map(_some_scenes, seeds, sizes)))
    images, exact, rough, level, per_image = (np.concatenate(p) for p in parts)
    return Store(images, exact, rough, level, np.concatenate([[0], per_image.cumsum()]))


def _move(turn: int, flip: bool, array: np.ndarray, axes: tuple[int, int]) -> np.ndarray:
    """Turned by ``turn`` right angles in the plane of ``axes``, then flipped."""
    turned = np.rot90(array, turn, axes)
    return np.flip(turned, axes[1]) if flip else turned


class Batches:
    """Draws batches: flipped and turned images with the masks that are prompted."""

    def __init__(self, store: Store, seed: int):
        self.store, self.rng = store, np.random.default_rng(seed)

    def draw(self, count: int, prompts: int) -> dict[str, Tensor]:
        """Images (B, H, W, 3) uint8, all (B, M, HW) coarse masks; of each prompt image, mask, level."""
        rng, rows, images = self.rng, [], []
        everything, where, number, level, exact = [], [], [], [], []
        for b, index in enumerate(rng.integers(0, len(self.store.images), count)):
            turn, flip = int(rng.integers(4)), bool(rng.integers(2))
            rough, fine, kind = self.store.masks(index)
            move = partial(_move, turn, flip)
            image = move(self.store.images[index], (0, 1))
            images.append(image[..., rng.permutation(3)] if rng.random() < 0.5 else image)
            everything.append(np.ascontiguousarray(move(rough, (1, 2))))
            weight = np.select(
                [kind == 3, kind == 2], [0.62 / max(1, (kind == 3).sum()), 0.36 / (kind == 2).sum()], 0.03
            )
            pick = rng.choice(len(kind), prompts, p=weight / weight.sum())
            where += [b] * prompts
            number += list(pick)
            level += list(kind[pick])
            exact.append(np.ascontiguousarray(move(fine, (1, 2))[pick]))
            rows.append(len(kind))
        padded = np.zeros((count, max(rows), SIZE, SIZE), bool)
        for b, m in enumerate(everything):
            padded[b, : len(m)] = m
        tensor = lambda a: torch.from_numpy(np.ascontiguousarray(a))
        return {
            "images": tensor(np.stack(images)),
            "all": tensor(padded),
            "image": torch.tensor(where),
            "mask": torch.tensor(number),
            "level": torch.tensor(level),
            "exact": tensor(np.concatenate(exact)),
        }
