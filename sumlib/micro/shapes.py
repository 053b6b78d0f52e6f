"""Shapes of the micro world: objects with intricate outlines, described as parts made of strokes.

A kind is a function ``(rng, detail, thin) -> list of parts``; a part is a list of primitives in the object's
own frame, where the object fills about [-1, 1] x [-1, 1] (x right, y down). ``detail`` scales how many
spokes, teeth or strands a part has, ``thin`` the width of its strokes. Primitives are ``("poly", (K, 2))``,
``("disc", (x, y, radius))`` and ``("line", (K, 2), width)``; later parts are painted over earlier ones.
"""

from collections.abc import Callable

import numpy as np

Primitive = tuple
Part = list[Primitive]


def _ellipse(x: float, y: float, rx: float, ry: float, tilt: float = 0.0) -> Primitive:
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    points = np.stack([rx * np.cos(t), ry * np.sin(t)], 1)
    c, s = np.cos(tilt), np.sin(tilt)
    return ("poly", points @ np.array([[c, s], [-s, c]]) + [x, y])


def _rect(x0: float, y0: float, x1: float, y1: float) -> Primitive:
    return ("poly", np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]))


def _ring(radius: float, width: float) -> Primitive:
    t = np.linspace(0, 2 * np.pi, 33)
    return ("line", radius * np.stack([np.cos(t), np.sin(t)], 1), width)


def _line(points: list, width: float) -> Primitive:
    return ("line", np.array(points, float), width)


def _rays(count: int, inner: float, outer: float, width: float, phase: float) -> Part:
    angles = phase + 2 * np.pi * np.arange(count) / count
    return [
        _line([[inner * np.cos(a), inner * np.sin(a)], [outer * np.cos(a), outer * np.sin(a)]], width)
        for a in angles
    ]


def _count(rng: np.random.Generator, low: int, high: int, detail: float) -> int:
    return max(2, round(rng.integers(low, high + 1) * detail))


def wheel(rng, detail, thin):
    """Tyre, spokes, hub."""
    spokes = _rays(_count(rng, 6, 9, detail), 0.1, 0.85, 0.10 * thin, rng.uniform(0, 6))
    return [spokes, [_ring(0.84, 0.26)], [("disc", (0, 0, rng.uniform(0.3, 0.38)))]]


def comb(rng, detail, thin):
    """A head with teeth, and a handle."""
    count = _count(rng, 6, 8, detail)
    xs = np.linspace(-0.92, 0.92, count)
    teeth = [_line([[x, -0.2], [x, -1.0]], 0.12 * thin) for x in xs]
    return [teeth + [_rect(-1.0, -0.32, 1.0, 0.02)], [_rect(-0.24, 0.02, 0.24, 1.0)]]


def panel(rng, detail, thin):
    """A lattice, its frame, and a solid door."""
    count = _count(rng, 4, 5, detail)
    grid = np.linspace(-0.9, 0.9, count + 2)[1:-1]
    lattice = [_line([[g, -0.95], [g, 0.95]], 0.09 * thin) for g in grid]
    lattice += [_line([[-0.95, g], [0.95, g]], 0.09 * thin) for g in grid]
    frame = [_line([[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9], [-0.9, -0.9]], 0.24)]
    return [lattice, frame, [_rect(-0.78, 0.2, -0.05, 0.78)]]


def creature(rng, detail, thin):
    """Legs, a body, and a head with hair."""
    count = _count(rng, 4, 6, detail)
    feet = np.linspace(-0.8, 0.6, count)
    legs = [_line([[0.7 * x, 0.2], [x + rng.uniform(-0.08, 0.08), 1.0]], 0.13 * thin) for x in feet]
    body = [_ellipse(-0.1, 0.1, 0.75, 0.42)]
    strands = _count(rng, 4, 6, detail)
    hair = [
        _line([[0.6, -0.5], [0.6 + 0.55 * np.cos(a), -0.5 + 0.5 * np.sin(a)]], 0.09 * thin)
        for a in np.linspace(-2.9, -0.3, strands)
    ]
    return [legs, body, hair + [("disc", (0.6, -0.38, 0.33))]]


def plant(rng, detail, thin):
    """Stems with leaves, and a pot."""
    count = _count(rng, 4, 6, detail)
    green = []
    for a in np.linspace(-2.6, -0.55, count):
        tip = np.array([0.95 * np.cos(a), 0.25 + 1.2 * np.sin(a)])
        green += [_line([[0, 0.3], [0.4 * tip[0], 0.3 * tip[1]], tip], 0.10 * thin)]
        green += [_ellipse(0.85 * tip[0], 0.85 * tip[1], 0.24, 0.11, a + rng.uniform(-0.4, 0.4))]
    return [green, [("poly", np.array([[-0.55, 0.3], [0.55, 0.3], [0.38, 1.0], [-0.38, 1.0]]))]]


def lamp(rng, detail, thin):
    """A foot, a pole with fringe, and a shade."""
    count = _count(rng, 5, 7, detail)
    fringe = [_line([[x, -0.3], [x, 0.12]], 0.08 * thin) for x in np.linspace(-0.62, 0.62, count)]
    pole = [_rect(-0.1, -0.3, 0.1, 0.8)]
    shade = [("poly", np.array([[-0.4, -1.0], [0.4, -1.0], [0.75, -0.25], [-0.75, -0.25]]))]
    return [fringe + pole, [_ellipse(0, 0.82, 0.62, 0.2)], shade]


def sun(rng, detail, thin):
    """Rays around a face with an inner disc."""
    rays = _rays(_count(rng, 9, 12, detail), 0.5, 1.0, 0.11 * thin, rng.uniform(0, 6))
    return [rays + [_ring(0.55, 0.2)], [("disc", (0, 0, 0.5))]]


def fish(rng, detail, thin):
    """A body, a rayed tail, and a crest."""
    tail = [
        _line([[0.4, 0], [1.0, y]], 0.10 * thin) for y in np.linspace(-0.6, 0.6, _count(rng, 4, 6, detail))
    ]
    crest = [
        _line([[x, -0.3], [x + 0.12, -0.85]], 0.11 * thin)
        for x in np.linspace(-0.6, 0.25, _count(rng, 4, 5, detail))
    ]
    crest += [_line([[-0.6, -0.36], [0.25, -0.36]], 0.16)]
    return [tail + [("disc", (0.45, 0, 0.2))], crest, [_ellipse(-0.2, 0.05, 0.68, 0.42)]]


def ladder(rng, detail, thin):
    """Rails with rungs, and a platform."""
    rungs = [
        _line([[-0.45, y], [0.45, y]], 0.11 * thin) for y in np.linspace(-0.4, 0.9, _count(rng, 4, 6, detail))
    ]
    rails = [_line([[-0.45, -0.6], [-0.5, 1.0]], 0.15), _line([[0.45, -0.6], [0.5, 1.0]], 0.15)]
    return [rungs + rails, [_rect(-0.75, -1.0, 0.75, -0.52)]]


def mill(rng, detail, thin):
    """Latticed sails on a tower (test sets only)."""
    sails = []
    for a in rng.uniform(0, 1.5) + np.pi / 2 * np.arange(4):
        u, v = np.array([np.cos(a), np.sin(a)]), np.array([-np.sin(a), np.cos(a)])
        centre = np.array([0, -0.25])
        sails += [_line([centre, centre + 0.8 * u], 0.09 * thin)]
        sails += [
            _line([centre + r * u, centre + r * u + 0.28 * v], 0.08 * thin)
            for r in np.linspace(0.3, 0.8, _count(rng, 3, 4, detail))
        ]
    tower = [("poly", np.array([[-0.25, -0.2], [0.25, -0.2], [0.48, 1.0], [-0.48, 1.0]]))]
    return [tower, sails + [("disc", (0, -0.25, 0.16))]]


def brush(rng, detail, thin):
    """Bristles, a ferrule and a shaft (test sets only)."""
    bristles = [
        _line([[0.5 * x, -0.2], [x, -1.0]], 0.10 * thin)
        for x in np.linspace(-0.6, 0.6, _count(rng, 5, 7, detail))
    ]
    return [bristles, [_rect(-0.42, -0.3, 0.42, 0.15)], [_rect(-0.17, 0.15, 0.17, 1.0)]]


def pebble(rng, detail, thin):
    """A plain distractor: one round part, or two."""
    body = [_ellipse(0, 0, 0.95, rng.uniform(0.65, 0.95), rng.uniform(0, 3))]
    return [body] if rng.random() < 0.5 else [body, [("disc", (0, 0, 0.5))]]


def mushroom(rng, detail, thin):
    """A plain distractor: a cap and a stem."""
    return [[_rect(-0.32, -0.1, 0.32, 0.95)], [_ellipse(0, -0.35, 0.95, 0.55)]]


OBJECTS: dict[str, Callable] = {
    f.__name__: f for f in (wheel, comb, panel, creature, plant, lamp, sun, fish, ladder)
}
UNSEEN: dict[str, Callable] = {f.__name__: f for f in (mill, brush)}
DISTRACTORS: dict[str, Callable] = {f.__name__: f for f in (pebble, mushroom)}
KINDS = OBJECTS | UNSEEN | DISTRACTORS
