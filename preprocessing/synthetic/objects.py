"""Teddybears, hydrants, apples and donuts made of analytic solids, each different, none the same from two sides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from preprocessing.synthetic.shapes import CappedCone, Ellipsoid, Solid, Torus
from preprocessing.synthetic.textures import PALETTE, Color, Material

Random = np.random.Generator
Coats = tuple[Material, Material, Material]


@dataclass(frozen=True, kw_only=True)
class ProceduralObject:
    """Solids that stand on z = 0, facing +x, about one unit large.

    Color and pattern are the words that a caption uses.
    """

    solids: tuple[Solid, ...]
    color: str
    pattern: str


def build_object(category: str, random: Random) -> ProceduralObject:
    """One object of a category of CATEGORIES; a pure function of the generator's state."""
    built = _BUILDERS[category](random)
    lowest = min(solid.lowest() for solid in built.solids)
    turn = random.uniform(-np.pi, np.pi)  # no azimuth of the object frame is special in the data
    solids = tuple(_turned(solid.moved((0, 0, -lowest)), turn) for solid in built.solids)
    return ProceduralObject(solids=solids, color=built.color, pattern=built.pattern)


def bounding_sphere(solids: tuple[Solid, ...]) -> tuple[np.ndarray, float]:
    """Centre [3] and radius of a sphere that holds all solids (not the smallest one)."""
    centers = np.stack([solid.center for solid in solids])
    radii = np.array([solid.bounding_radius for solid in solids])
    center = ((centers - radii[:, None]).min(0) + (centers + radii[:, None]).max(0)) / 2
    return center, float((np.linalg.norm(centers - center, axis=1) + radii).max())


def _teddybear(random: Random) -> ProceduralObject:
    name, color, accent = _two_colors(random)
    pattern = str(random.choice(["plain", "plain", "striped", "dotted", "checked"]))
    fur = Material(
        color=color, accent=accent, pattern=pattern, scale=_about(random, 1.1, 0.3), phase=random.uniform(0, 6)
    )
    plain, black = Material(color=color), Material(color=(0.05, 0.04, 0.05), gloss=0.6)
    pale = Material(color=_mix(accent, PALETTE["white"], 0.35))
    fat, tall, head, limb = (_about(random, 1.0, spread) for spread in (0.15, 0.12, 0.12, 0.18))
    top = 0.62 * tall + 0.17 * head  # height of the head's centre
    face = 0.03 + random.uniform(-0.02, 0.02)
    solids: list[Solid] = [
        _ball((0, 0, 0.34 * tall), (0.24 * fat, 0.26 * fat, 0.33 * tall), fur),
        _ball((0.11 * fat, 0, 0.32 * tall), (0.15 * fat, 0.17 * fat, 0.22 * tall), pale),
        _ball((face, 0, top), (0.21 * head, 0.24 * head, 0.21 * head), plain),
        _ball((face + 0.18 * head, 0, top - 0.06 * head), (0.12 * head, 0.13 * head, 0.095 * head), pale),
        _ball((face + 0.29 * head, 0, top - 0.02 * head), (0.035 * head, 0.05 * head, 0.033 * head), black),
    ]
    ear = _about(random, 0.1, 0.25)
    wave = random.uniform(-0.25, 0.45)  # one arm hangs, the other may be raised
    for side in (-1, 1):
        solids += [
            _ball((face + 0.175 * head, side * 0.09 * head, top + 0.07 * head), (0.032, 0.032, 0.036), black),
            _ball((face, side * 0.19 * head, top + 0.18 * head), (0.055, ear, ear), plain),
            _ball((face + 0.03, side * 0.19 * head, top + 0.18 * head), (0.04, 0.65 * ear, 0.65 * ear), pale),
        ]
        lift = max(wave, 0.0) * (side + 1) - 0.15
        shoulder = (0.03, side * 0.2 * fat, 0.52 * tall)
        hand = (0.2, side * (0.2 * fat + 0.16), 0.52 * tall + lift)
        solids.append(_limb(shoulder, hand, 0.085 * limb, fur))
        hip, foot = (0.1, side * 0.15 * fat, 0.115), (0.42, side * (0.15 * fat + 0.07), 0.12)
        solids.append(_limb(hip, foot, 0.11 * limb, fur))
        solids.append(_ball((0.47, foot[1] + side * 0.01, 0.125), (0.05, 0.08 * limb, 0.09 * limb), pale))
    if random.random() < 0.5:  # bow tie
        tie = Material(color=PALETTE[str(random.choice(["red", "blue", "yellow", "green"]))])
        solids += [_ball((0.2 * fat + 0.02, side * 0.065, 0.56 * tall), (0.03, 0.065, 0.045), tie) for side in (-1, 1)]
    return ProceduralObject(solids=tuple(solids), color=name, pattern=pattern)


def _hydrant(random: Random) -> ProceduralObject:
    name, color, accent = _two_colors(random)
    pattern = str(random.choice(["plain", "plain", "striped", "checked"]))
    phase = random.uniform(0, 6)
    body, trim = Material(color=color, gloss=0.35), Material(color=accent, gloss=0.35)
    barrel = replace(body, accent=accent, pattern=pattern, scale=_about(random, 0.8, 0.3), phase=phase)
    steel = Material(color=(0.3, 0.3, 0.32), gloss=0.5)
    height, width, bell = _about(random, 0.6, 0.12), _about(random, 0.165, 0.12), _about(random, 0.16, 0.2)
    bonnet = trim if random.random() < 0.5 else body
    solids: list[Solid] = [
        _pillar(0.0, 0.06, 1.5 * width, 1.45 * width, trim if random.random() < 0.5 else body),
        _pillar(0.06, height, 1.08 * width, width, barrel),
        _pillar(height, height + 0.05, 1.35 * width, 1.35 * width, body),
        _ball((0, 0, height + 0.05), (1.05 * width, 1.05 * width, bell), bonnet),
        _pillar(height + 0.03 + bell, height + 0.13 + bell, 0.045, 0.035, steel),
    ]
    for k in range(6):
        azimuth = k * np.pi / 3 + 0.3
        solids.append(
            _ball((1.28 * width * np.cos(azimuth), 1.28 * width * np.sin(azimuth), 0.065), (0.022, 0.022, 0.025), steel)
        )
    level, reach, size = (
        height * random.uniform(0.68, 0.78),
        width + _about(random, 0.08, 0.3),
        _about(random, 0.065, 0.15),
    )
    for side in (-1, 1):
        solids += _nozzle((0, side, 0), level, reach, size, (body, trim, steel))
    solids += _nozzle((1, 0, 0), level - 0.06, reach, 1.55 * size, (body, trim, steel))
    return ProceduralObject(solids=tuple(solids), color=name, pattern=pattern)


def _nozzle(direction: ArrayLike, level: float, reach: float, size: float, coats: Coats) -> list[Solid]:
    """A pipe to one side, its cap and the cap's nut, each in its own coat."""
    axis = np.asarray(direction, np.float64)
    base = np.array([0, 0, level])
    body, trim, steel = coats
    return [
        _rod(base + 0.08 * axis, base + reach * axis, size, size, body),
        _rod(base + reach * axis, base + (reach + 0.05) * axis, 1.25 * size, 1.15 * size, trim),
        _rod(base + (reach + 0.05) * axis, base + (reach + 0.09) * axis, 0.4 * size, 0.35 * size, steel),
    ]


def _apple(random: Random) -> ProceduralObject:
    name = str(random.choice(["red", "green", "yellow", "orange", "pink", "purple"]))
    color = _jitter(random, PALETTE[name])
    blush = "blushed" if random.random() < 0.6 else "plain"
    accent = _jitter(random, PALETTE[str(random.choice([c for c in ("red", "yellow", "green", "brown") if c != name]))])
    skin = Material(color=color, accent=_mix(color, accent, 0.75), pattern=blush, phase=random.uniform(0, 6), gloss=0.5)
    tube = _about(random, 0.36, 0.07)
    squash = np.diag([1.0, 1.0, _about(random, 0.98, 0.12)])
    ring = _about(random, 0.14, 0.2)
    fruit = _at(Torus, (0, 0, 0), squash, skin, ring=ring, tube=tube, taper=random.uniform(0.1, 0.4))
    dimple = squash[2, 2] * np.sqrt(tube**2 - ring**2)
    lean, azimuth = random.uniform(0.02, 0.1), random.uniform(-np.pi, np.pi)
    tip = np.array([lean * np.cos(azimuth), lean * np.sin(azimuth), dimple + _about(random, 0.2, 0.25)])
    wood = Material(color=_jitter(random, PALETTE["brown"]))
    solids: list[Solid] = [fruit, _rod(np.array([0, 0, dimple - 0.05]), tip, 0.018, 0.026, wood)]
    if random.random() < 0.75:
        leaf = Material(color=_jitter(random, PALETTE["green"]), accent=(0.4, 0.7, 0.3), pattern="striped", scale=1.5)
        blade = 0.16 * np.array([np.cos(azimuth), np.sin(azimuth), 0.25])
        frame = np.stack([blade, 0.075 * np.array([-np.sin(azimuth), np.cos(azimuth), 0]), [0, 0, 0.016]], axis=1)
        solids.append(_at(Ellipsoid, 0.6 * tip + [0, 0, 0.4 * dimple] + 0.95 * blade, frame, leaf))
    if random.random() < 0.7:  # a label on one side
        around, up = random.uniform(-np.pi, np.pi), random.uniform(0.0, 0.35)
        out = np.array([np.cos(around) * np.cos(up), np.sin(around) * np.cos(up), np.sin(up)])
        middle = np.array([np.cos(around), np.sin(around), 0]) * ring + out * tube * 0.985
        frame = _frame_along(out) @ np.diag([0.085, 0.085, 0.03])
        sticker = Material(color=PALETTE[str(random.choice(["white", "blue", "yellow"]))])
        solids.append(_at(Ellipsoid, middle * [1, 1, squash[2, 2]], frame, sticker))
    return ProceduralObject(solids=tuple(solids), color=name, pattern=blush)


def _donut(random: Random) -> ProceduralObject:
    name = str(random.choice(["pink", "brown", "white", "blue", "green", "purple", "orange", "yellow"]))
    dough = _jitter(random, (0.80, 0.56, 0.30))
    icing = Material(
        color=_jitter(random, PALETTE[name]), accent=dough, pattern="glazed", phase=random.uniform(0, 6), gloss=0.4
    )
    ring, tube = _about(random, 0.36, 0.08), _about(random, 0.17, 0.15)
    tilt = random.uniform(0, 0.2)
    frame = np.diag([1, 1, _about(random, 0.95, 0.1)])
    cos, sin = np.cos(tilt), np.sin(tilt)
    frame = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]]) @ frame
    solids: list[Solid] = [_at(Torus, (0, 0, 0), frame, icing, ring=ring, tube=tube)]
    candy = Material(
        color=PALETTE[str(random.choice([c for c in ("red", "teal", "yellow", "white") if c != name]))], gloss=0.7
    )
    start = random.uniform(-np.pi, np.pi)
    for k in range(int(random.integers(2, 6))):  # candies on one side only
        azimuth = start + 0.5 * k
        place = np.array([ring * np.cos(azimuth), ring * np.sin(azimuth), tube + 0.01])
        solids.append(_ball(frame @ place, (0.055, 0.055, 0.05), candy))
    return ProceduralObject(solids=tuple(solids), color=name, pattern="glazed")


_BUILDERS: dict[str, Callable[[Random], ProceduralObject]] = {
    "teddybear": _teddybear,
    "hydrant": _hydrant,
    "apple": _apple,
    "donut": _donut,
}
CATEGORIES = tuple(_BUILDERS)


def _about(random: Random, value: float, spread: float) -> float:
    return float(value * (1 + random.uniform(-spread, spread)))


def _jitter(random: Random, color: Color) -> Color:
    shifted = np.clip(np.asarray(color) * random.uniform(0.9, 1.1) + random.uniform(-0.04, 0.04, 3), 0.02, 0.98)
    return float(shifted[0]), float(shifted[1]), float(shifted[2])


def _mix(a: Color, b: Color, weight: float) -> Color:
    return a[0] + weight * (b[0] - a[0]), a[1] + weight * (b[1] - a[1]), a[2] + weight * (b[2] - a[2])


def _two_colors(random: Random) -> tuple[str, Color, Color]:
    name, other = (str(word) for word in random.choice(list(PALETTE), 2, replace=False))
    return name, _jitter(random, PALETTE[name]), _jitter(random, PALETTE[other])


def _at(kind: type[Solid], center: ArrayLike, frame: ArrayLike, material: Material, **sizes: float) -> Solid:
    return kind(frame=np.asarray(frame, np.float32), center=np.asarray(center, np.float32), material=material, **sizes)


def _ball(center: ArrayLike, radii: ArrayLike, material: Material) -> Solid:
    return _at(Ellipsoid, center, np.diag(np.asarray(radii)), material)


def _pillar(low: float, high: float, bottom: float, top: float, material: Material) -> Solid:
    return _rod(np.array([0, 0, low]), np.array([0, 0, high]), bottom, top, material)


def _rod(start: np.ndarray, end: np.ndarray, bottom: float, top: float, material: Material) -> Solid:
    """A capped cone from `start` to `end`.

    Its local radius is 1 at the thicker end, so that patterns keep their size.
    """
    wide = max(bottom, top)
    frame = _frame_along(end - start) @ np.diag([wide, wide, float(np.linalg.norm(end - start)) / 2])
    return _at(CappedCone, (start + end) / 2, frame, material, bottom=bottom / wide, top=top / wide)


def _limb(start: ArrayLike, end: ArrayLike, radius: float, material: Material) -> Solid:
    a, b = np.asarray(start, np.float64), np.asarray(end, np.float64)
    half = float(np.linalg.norm(b - a)) / 2 + 0.5 * radius
    return _at(Ellipsoid, (a + b) / 2, _frame_along(b - a) @ np.diag([radius, radius, half]), material)


def _frame_along(axis: np.ndarray) -> np.ndarray:
    """A rotation whose third column is the unit vector along `axis`."""
    z = axis / np.linalg.norm(axis)
    x = np.cross((0.0, 1.0, 0.0) if abs(z[1]) < 0.9 else (1.0, 0.0, 0.0), z)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z], axis=1)


def _turned(solid: Solid, angle: float) -> Solid:
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], np.float32)
    return solid.rotated(turn)
