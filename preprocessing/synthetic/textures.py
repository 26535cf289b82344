"""What is painted on objects, ground and background.

Plain functions from coordinates to colours in [0, 1], arrays [3, N] float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]  # float32 in practice
Color = tuple[float, float, float]

PALETTE: dict[str, Color] = {
    "red": (0.80, 0.13, 0.12),
    "orange": (0.92, 0.47, 0.10),
    "yellow": (0.93, 0.80, 0.18),
    "green": (0.20, 0.58, 0.22),
    "teal": (0.10, 0.58, 0.60),
    "blue": (0.15, 0.31, 0.78),
    "purple": (0.47, 0.22, 0.66),
    "pink": (0.93, 0.52, 0.68),
    "brown": (0.47, 0.29, 0.16),
    "white": (0.92, 0.91, 0.88),
    "gray": (0.50, 0.51, 0.53),
}
PATTERNS = ("plain", "striped", "dotted", "checked", "glazed", "blushed")
GROUNDS = ("wooden floor", "tiled floor", "lawn", "striped carpet", "checked blanket", "stone pavement")


@dataclass(frozen=True, kw_only=True)
class Material:
    """Colour of a solid as a function of its local coordinates.

    pattern is one of PATTERNS; scale is its number of repeats over a local unit, phase shifts it; gloss in [0, 1] is
    the highlight's strength.
    """

    color: Color
    accent: Color = (1.0, 1.0, 1.0)
    pattern: str = "plain"
    scale: float = 3.0
    phase: float = 0.0
    gloss: float = 0.0


def paint(material: Material, points: Array) -> Array:
    """Albedo [3, N] of a material at local points [3, N]."""
    color = np.asarray(material.color, np.float32)[:, None]
    if material.pattern == "plain":
        return np.broadcast_to(color, points.shape)
    accent = np.asarray(material.accent, np.float32)[:, None]
    if material.pattern == "glazed":
        return _glazed(material, points, color, accent)
    weight = _PATTERN_WEIGHTS[material.pattern](points, material)
    return color + (accent - color) * weight


def _striped(points: Array, material: Material) -> Array:
    return _step(
        np.sin((points[2] + 0.35 * points[1]) * np.float32(2 * np.pi * material.scale) + np.float32(material.phase)),
        0.15,
    )


def _dotted(points: Array, material: Material) -> Array:
    cell = points * np.float32(material.scale) + np.float32(material.phase)
    cell = cell - np.round(cell)
    return _step(np.float32(0.12) - np.einsum("cn,cn->n", cell, cell), 0.02)


def _checked(points: Array, material: Material) -> Array:
    azimuth = np.arctan2(points[1], points[0])
    turns = np.float32(max(2, round(2 * material.scale)))  # whole number: the pattern closes around the object
    rows = np.sin(points[2] * np.float32(2 * np.pi * material.scale) + np.float32(material.phase))
    return _step(rows * np.sin(azimuth * turns), 0.1)


def _blushed(points: Array, material: Material) -> Array:
    """Sun side of an apple: a broad patch around one azimuth, fading, with fine streaks along the meridians."""
    azimuth = np.arctan2(points[1], points[0])
    side = np.cos(azimuth - np.float32(material.phase))
    streaks = np.float32(0.12) * np.sin(azimuth * 23) * np.sin(azimuth * 7 + 1)
    return np.clip(0.45 + 0.7 * side + streaks + 0.2 * points[2], 0, 1)


_PATTERN_WEIGHTS: dict[str, Callable[[Array, Material], Array]] = {
    "striped": _striped,
    "dotted": _dotted,
    "checked": _checked,
    "blushed": _blushed,
}


def _glazed(material: Material, points: Array, color: Array, accent: Array) -> Array:
    """A donut: dough (accent) below a wavy edge, icing (color) above it, sprinkles mostly on one half of the icing."""
    azimuth = np.arctan2(points[1], points[0])
    radial = np.hypot(points[0], points[1])
    edge = 0.02 + 0.05 * np.sin(5 * azimuth + material.phase) + 0.03 * np.sin(9 * azimuth - 2 * material.phase)
    icing = _step(points[2] - edge.astype(np.float32), 0.01)
    u, v = azimuth * np.float32(26 / (2 * np.pi)), radial * np.float32(13)
    column, row = np.floor(u), np.floor(v)
    noise = _hash(column, row, material.phase)
    along = noise * np.float32(np.pi)
    du, dv = u - column - np.float32(0.5), v - row - np.float32(0.5)
    length = du * np.cos(along) + dv * np.sin(along)
    width = dv * np.cos(along) - du * np.sin(along)
    share = 0.55 + 0.45 * np.cos(azimuth - material.phase)
    sprinkle = (np.abs(length) < 0.32) & (np.abs(width) < 0.11) & (_hash(row, column, 3.1) < share) & (points[2] > 0.05)
    tints = np.asarray([PALETTE["white"], PALETTE["yellow"], PALETTE["blue"], PALETTE["green"]], np.float32).T
    tint = tints[:, (noise * 3.999).astype(np.int64)]
    return np.where(sprinkle, tint, accent + (color - accent) * icing)


@dataclass(frozen=True, kw_only=True)
class Ground:
    """A textured disc at z = 0: name is one of GROUNDS, radius in object units, angle in radians turns the pattern."""

    name: str
    color: Color
    accent: Color
    scale: float
    angle: float
    radius: float
    seed: float


def paint_ground(ground: Ground, x: Array, y: Array) -> Array:
    """Albedo [3, N] at ground coordinates x, y [N]."""
    cos, sin = np.float32(np.cos(ground.angle) * ground.scale), np.float32(np.sin(ground.angle) * ground.scale)
    u, v = cos * x - sin * y, sin * x + cos * y
    weight, tone = _GROUND_PATTERNS[ground.name](u, v, np.float32(ground.seed))
    color, accent = (np.asarray(c, np.float32)[:, None] for c in (ground.color, ground.accent))
    return (color + (accent - color) * weight) * tone


def _wood(u: Array, v: Array, seed: np.float32) -> tuple[Array, Array]:
    plank = np.floor(v * 2)
    shifted = u * np.float32(0.45) + _hash(plank, seed, 0.7) * 3
    board = np.floor(shifted)
    tone = 0.72 + 0.5 * _hash(plank, board, 1.3)
    gap = np.minimum(_gap(v * 2, 0.035), _gap(shifted, 0.012))
    grain = np.sin(v * 34 + 1.5 * np.sin(u * 1.7 + plank * 5) + 9 * _hash(board, plank, 2.1))
    return 0.35 + 0.3 * grain, tone * (0.45 + 0.55 * gap)


def _tiles(u: Array, v: Array, seed: np.float32) -> tuple[Array, Array]:
    column, row = np.floor(u * 1.4), np.floor(v * 1.4)
    tone = 0.9 + 0.2 * _hash(column, row, 0.3)
    return np.mod(column + row, 2), tone * (0.6 + 0.4 * np.minimum(_gap(u * 1.4, 0.03), _gap(v * 1.4, 0.03)))


def _lawn(u: Array, v: Array, seed: np.float32) -> tuple[Array, Array]:
    waves = np.sin(u * 2.1 + 1.3 * np.sin(v * 1.7 + seed)) * np.sin(v * 2.6 + 1.1 * np.sin(u * 1.9 - seed))
    blades = _hash(np.floor(u * 14), np.floor(v * 14), 0.9)
    return np.clip(0.5 + 0.55 * waves, 0, 1), 0.75 + 0.4 * blades


def _carpet(u: Array, v: Array, seed: np.float32) -> tuple[Array, Array]:
    zigzag = np.abs(np.mod(u * 1.5, 1) - np.float32(0.5))
    stripes = np.sin((v + 0.5 * zigzag) * 6)
    return _step(stripes, 0.15), 0.9 + 0.15 * _step(np.sin((v + 0.5 * zigzag) * 18 + seed), 0.3)


def _blanket(u: Array, v: Array, seed: np.float32) -> tuple[Array, Array]:
    across, along = _step(np.sin(u * 5), 0.1), _step(np.sin(v * 5), 0.1)
    lines = np.minimum(_gap(u * np.float32(5 / (2 * np.pi)), 0.03), _gap(v * np.float32(5 / (2 * np.pi)), 0.03))
    return 0.5 * across + 0.5 * along, 0.7 + 0.3 * lines


def _stone(u: Array, v: Array, seed: np.float32) -> tuple[Array, Array]:
    row = np.floor(v * 1.8)
    shifted = u * 1.1 + 0.5 * np.mod(row, 2)
    brick = np.floor(shifted)
    tone = 0.65 + 0.6 * _hash(brick, row, 0.5)
    return _hash(row, brick, 1.7), tone * (0.5 + 0.5 * np.minimum(_gap(v * 1.8, 0.05), _gap(shifted, 0.035)))


_GROUND_PATTERNS: dict[str, Callable[[Array, Array, np.float32], tuple[Array, Array]]] = dict(
    zip(GROUNDS, (_wood, _tiles, _lawn, _carpet, _blanket, _stone), strict=True)
)


@dataclass(frozen=True, kw_only=True)
class Background:
    """A far wall or sky: gradient from `low` to `high` by elevation, with two broad waves around the horizon."""

    low: Color
    high: Color
    waves: tuple[float, float]
    phases: tuple[float, float]


def paint_background(background: Background, directions: Array) -> Array:
    """Colour [3, N] seen along directions [3, N] (not normalised)."""
    x, y, z = directions
    elevation = z / np.sqrt(x * x + y * y + z * z)
    azimuth = np.arctan2(y, x)
    low, high = (np.asarray(c, np.float32)[:, None] for c in (background.low, background.high))
    first, second = np.float32(background.phases[0]), np.float32(background.phases[1])
    variation = background.waves[0] * np.sin(2 * azimuth + first) + background.waves[1] * np.sin(
        5 * azimuth + 4 * elevation + second
    )
    return (low + (high - low) * _step(elevation + np.float32(0.1), 0.6)) * (1 + variation.astype(np.float32))


def _step(value: Array, width: float) -> Array:
    """0 below -width, 1 above +width, linear between."""
    return np.clip(value * np.float32(0.5 / width) + np.float32(0.5), 0, 1)


def _gap(value: Array, width: float) -> Array:
    """1 inside the cells [k, k+1], 0 on the lines between them, `width` of a cell wide."""
    distance = np.abs(value - np.round(value))
    return np.clip(distance * np.float32(1 / width) - np.float32(0.5), 0, 1)


def _hash(a: Array, b: Array | np.float32, seed: float) -> Array:
    """A fixed pseudo-random number in [0, 1) for each pair of whole numbers."""
    value = np.sin(a * np.float32(12.9898) + b * np.float32(78.233) + np.float32(seed)) * np.float32(437.58)
    return value - np.floor(value)
