"""Small scenes with known masks, for the tests of the data layer."""

from types import SimpleNamespace

import numpy as np


def make_scene(seed: int, size: tuple[int, int] = (24, 32)) -> SimpleNamespace:
    """Two entities of three and two striped parts, on (H, W) of different height and width."""
    rng = np.random.default_rng(seed)
    entity, part = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    entity[4:20, 3:13], entity[6:18, 13:28] = 1, 2
    part[4:9, 3:13], part[9:15, 3:13], part[15:20:2, 3:13] = 4, 2, 9
    part[6:18, 13:20], part[6:18, 22:28] = 7, 3
    image = (rng.random((1, 1, 3)) * 90 + 60 * entity[..., None]).astype(np.uint8)
    owner = {4: 1, 2: 1, 9: 1, 7: 2, 3: 2}
    return SimpleNamespace(
        image=image, salient=entity > seed % 2, entity_map=entity, part_map=part, part_owner=owner
    )


SCENES = [make_scene(seed) for seed in range(9)]
