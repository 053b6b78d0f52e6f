"""The micro world: procedural scenes with exact masks of salient groups, entities and parts.

It stands in for the photographs that can not be shipped, and keeps what makes the paper's problem hard: a
click is ambiguous (part, object or group), outlines are intricate (spokes, teeth, lattices, strands, holes),
and the labels a foundation model learns from are systematically coarse. Levels, decided once and used
everywhere:

- **part** (task 3): a visible part of an entity with at least two parts;
- **entity** (task 2): a whole object, attached or free; backgrounds are *not* entities and have no mask;
- **salient** (task 1): the main object with, half of the time, the second object attached to it.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

from sumlib.micro.shapes import DISTRACTORS, KINDS, OBJECTS

SIZE = 64
"""Height and width of a scene in pixels."""
_SUPER = 4  # scenes are painted at 4 x the size, so that strokes are anti-aliased


@dataclass(frozen=True)
class Style:
    """How the scenes of one set look; the defaults are the training sets' look."""

    kinds: tuple[str, ...] = tuple(OBJECTS)
    scale: tuple[float, float] = (15.0, 19.0)
    """Half-extent of the main object, in pixels."""
    attached: float = 0.5
    """Probability that a second object touches the main one."""
    distractors: tuple[int, int] = (0, 2)
    """Fewest and most free small objects."""
    detail: float = 1.0
    """Number of spokes, teeth and strands, relative."""
    thin: float = 1.0
    """Width of strokes, relative."""
    texture: float = 0.05
    """Amplitude of the texture of surfaces, in [0, 1] intensities."""
    noise: float = 0.02
    """Standard deviation of the sensor noise."""
    lighting: float = 0.15
    """Strength of the light gradient over the scene."""
    contrast: tuple[float, float] = (0.85, 1.0)
    blur: float = 0.0
    """Standard deviation of the optical blur, in pixels."""
    smallest: int = 32
    """Visible pixels below which a part or an object is painted but has no mask."""


@dataclass(frozen=True)
class Scene:
    """One image with its exact truth."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    entity_map: np.ndarray
    """(H, W) uint8, 0 background, k the k-th entity."""
    part_map: np.ndarray
    """(H, W) uint8, 0 no part, else a part id that is unique in the scene."""
    salient: np.ndarray
    """(H, W) bool."""
    part_owner: dict[int, int] = field(default_factory=dict)
    """Part id -> entity id."""

    def masks(self, level: str) -> np.ndarray:
        """Exact masks of ``level`` ("salient", "entity" or "part"), (M, H, W) bool."""
        if level == "salient":
            return self.salient[None]
        ids = self.entity_map if level == "entity" else self.part_map
        found = [k for k in np.unique(ids) if k]
        return ids == np.array(found, ids.dtype).reshape(-1, 1, 1)


def coarse(mask: np.ndarray) -> np.ndarray:
    """The label a hurried annotator draws, on which the foundation model is trained: (H, W) bool -> (H, W)
    bool.

    Gaps between spokes and teeth are closed, and the outline is drawn rather around the object than on its
    edge: up to a pixel too wide. Falls back to the mask itself where nothing would be left.
    """
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 8, 8, 8, 8, cv2.BORDER_CONSTANT)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, kernel)
    smooth = cv2.GaussianBlur(closed.astype(np.float32), (0, 0), 1.4)[8:-8, 8:-8] > 0.3
    return smooth if smooth.any() else mask.copy()


def _hsv(h: float, s: float, v: float) -> np.ndarray:
    i = np.array([5.0, 3.0, 1.0]) + 6 * (h % 1)
    k = i % 6
    return v - v * s * np.clip(np.minimum(k, 4 - k), 0, 1)


def _palette(rng: np.random.Generator, count: int, hue: float, against: list[np.ndarray]) -> list[np.ndarray]:
    """``count`` colours of one hue family, apart from each other and from the colours ``against``."""
    chosen: list[np.ndarray] = []
    for _ in range(count):
        best, best_gap = None, -1.0
        for _ in range(12):
            colour = _hsv(hue + rng.uniform(-0.05, 0.05), rng.uniform(0.35, 1.0), rng.uniform(0.3, 1.0))
            gap = min((np.linalg.norm(colour - c) for c in chosen + against), default=1.0)
            if gap > best_gap:
                best, best_gap = colour, gap
            if gap > 0.36:
                break
        chosen.append(best)
    return chosen


def _waves(rng: np.random.Generator, size: int, low: float, high: float) -> np.ndarray:
    """A smooth random field of one plane wave and blurred noise, (size, size) in about [-1, 1]."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    angle, freq = rng.uniform(0, np.pi), rng.uniform(low, high)
    wave = np.sin(2 * np.pi * freq * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 6))
    grain = cv2.resize(
        rng.standard_normal((10, 10)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC
    )
    return 0.6 * wave + 0.5 * grain


def _paint(canvas: np.ndarray, part: list, transform: tuple, value: int) -> None:
    """Draw a part's primitives into the id canvas (at the painting size)."""
    scale, angle, centre = transform
    c, s = np.cos(angle) * scale * _SUPER, np.sin(angle) * scale * _SUPER
    matrix = np.array([[c, s], [-s, c]])
    offset = np.asarray(centre) * _SUPER
    for kind, geometry, *width in part:
        if kind == "disc":
            x, y, radius = geometry
            point = np.array([x, y]) @ matrix + offset
            cv2.circle(
                canvas,
                tuple(int(v) for v in point.round()),
                max(1, round(radius * scale * _SUPER)),
                value,
                -1,
            )
            continue
        points = (np.asarray(geometry) @ matrix + offset).round().astype(np.int32)
        if kind == "poly":
            cv2.fillPoly(canvas, [points], value)
        else:
            cv2.polylines(canvas, [points], False, value, max(2, round(width[0] * scale * _SUPER)))


def _place(rng: np.random.Generator, style: Style, size: int) -> list[tuple[str, tuple]]:
    """Kinds and transforms (scale, angle, centre) of the scene's objects; the salient ones come first."""
    scale = rng.uniform(*style.scale)
    attached = rng.random() < style.attached
    shrink = 0.78 if attached else 1.0
    angle = rng.uniform(0, 2 * np.pi)
    reach = max(0.0, size / 2 - scale * (1.0 if not attached else 1.25))
    centre = size / 2 + rng.uniform(-reach, reach, 2) * (0.8 if not attached else 0.4)
    placed = []
    if attached:
        second = scale * rng.uniform(0.6, 0.75)
        away = np.array([np.cos(angle), np.sin(angle)])
        main = centre - away * 0.52 * scale
        placed.append(
            (
                str(rng.choice(style.kinds)),
                (second, rng.uniform(-0.5, 0.5), main + away * (shrink * scale + second) * 0.86),
            )
        )
        centre = main
    placed.append((str(rng.choice(style.kinds)), (scale * shrink, rng.uniform(-0.6, 0.6), centre)))
    for _ in range(rng.integers(style.distractors[0], style.distractors[1] + 1)):
        for _ in range(12):  # a free spot, else the distractor is left out
            radius, spot = rng.uniform(5.0, 8.0), rng.uniform(6, size - 6, 2)
            if all(np.linalg.norm(spot - t[2]) > radius + 1.12 * t[0] + 2 for _, t in placed):
                placed.append((str(rng.choice(list(DISTRACTORS))), (radius, rng.uniform(0, 6), spot)))
                break
    return placed, 2 if attached else 1


def _ids(rng: np.random.Generator, style: Style, size: int) -> tuple[np.ndarray, list[tuple[int, int]], int]:
    """Paint all parts: (size*4, size*4) uint8 id canvas, (entity, number of parts) per painted id, salient
    count.
    """
    canvas = np.zeros((size * _SUPER, size * _SUPER), np.uint8)
    placed, salient = _place(rng, style, size)
    owner: list[tuple[int, int]] = []
    for entity, (kind, transform) in enumerate(placed, start=1):
        parts = KINDS[kind](rng, style.detail, style.thin)
        for part in parts:
            owner.append((entity, len(parts)))
            _paint(canvas, part, transform, len(owner))
    return canvas, owner, salient


def _colours(
    rng: np.random.Generator, owner: list[tuple[int, int]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Background colours and one colour a painted part, of one hue family an entity."""
    hue = rng.random()
    back = [
        _hsv(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.0, 0.35), rng.uniform(0.25, 0.95)) for _ in range(2)
    ]
    entities = max((e for e, _ in owner), default=0)
    start = rng.random()
    colours = []
    for entity in range(1, entities + 1):
        count = sum(e == entity for e, _ in owner)
        family = start + (entity - 1) * 0.382 + rng.uniform(-0.06, 0.06)
        colours += _palette(rng, count, family, back)
    return back, colours


def _shade(
    rng: np.random.Generator, style: Style, canvas: np.ndarray, back: list, colours: list
) -> np.ndarray:
    """Colour the id canvas: textures, light, optics and sensor; (H, W, 3) uint8."""
    big, size = canvas.shape[0], canvas.shape[0] // _SUPER
    angle, shift = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3) * big
    y, x = np.mgrid[:big, :big].astype(np.float32) - big / 2
    split = (x * np.cos(angle) + y * np.sin(angle) + 6 * np.sin(x / 30) > shift).astype(np.uint8)
    table = np.array([back[0], back[1], *colours], np.float32)
    index = np.where(canvas > 0, canvas.astype(np.int32) + 1, split)
    image = cv2.resize(table[index], (size, size), interpolation=cv2.INTER_AREA)
    coarse_ids = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_NEAREST)
    phase = (coarse_ids.astype(np.float32) * 2.4)[..., None]
    texture = _waves(rng, size, 0.05, 0.2)[..., None]
    image = image + style.texture * (
        texture * np.cos(phase) + _waves(rng, size, 0.1, 0.3)[..., None] * np.sin(phase)
    )
    light = rng.uniform(0, 2 * np.pi)
    ramp = (np.mgrid[:size, :size] - size / 2) / size
    image = image * (1 + style.lighting * (ramp[0] * np.sin(light) + ramp[1] * np.cos(light))[..., None] * 2)
    image = 0.5 + (image - 0.5) * rng.uniform(*style.contrast)
    if style.blur:
        image = cv2.GaussianBlur(image.astype(np.float32), (0, 0), style.blur)
    image = image + rng.normal(0, style.noise, image.shape)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def make_scene(rng: np.random.Generator, style: Style = Style(), size: int = SIZE) -> Scene:
    """Draw one scene of ``size`` x ``size`` pixels."""
    canvas, owner, salient_count = _ids(rng, style, size)
    back, colours = _colours(rng, owner)
    image = _shade(rng, style, canvas, back, colours)
    cover = np.stack(
        [
            cv2.resize((canvas == k).astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
            for k in range(1, len(owner) + 1)
        ]
    )
    painted = np.where(cover.sum(0) >= 0.5, cover.argmax(0) + 1, 0)  # (H, W) painted part id
    lookup = np.array([0] + [e for e, _ in owner])
    entity_map = lookup[painted].astype(np.uint8)
    part_map, part_owner = np.zeros((size, size), np.uint8), {}
    for k, (entity, count) in enumerate(owner, start=1):
        visible = painted == k
        if count > 1 and visible.sum() >= style.smallest:
            part_map[visible] = k
            part_owner[k] = entity
    for entity in range(1, lookup.max() + 1):
        if (entity_map == entity).sum() < style.smallest:  # hidden or out of the frame: not an entity
            part_map[entity_map == entity] = 0
            part_owner = {k: e for k, e in part_owner.items() if e != entity}
            entity_map[entity_map == entity] = 0
    salient = (entity_map > 0) & (entity_map <= salient_count)
    return Scene(image, entity_map, part_map, salient, part_owner)
