"""Everything that is drawn at random about one synthetic sequence, as a pure function of (seed, category, index)."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from preprocessing.synthetic.camera_paths import CameraPath, plan_path
from preprocessing.synthetic.objects import ProceduralObject, bounding_sphere, build_object
from preprocessing.synthetic.raytrace import Scene
from preprocessing.synthetic.textures import GROUNDS, PALETTE, Background, Color, Ground

Random = np.random.Generator

INTRINSICS_FORMATS = ("ndc_isotropic", "ndc_norm_image_bounds")
# (height, width) in units of the short side. An odd number of shapes and an even one of formats: every pair occurs.
IMAGE_SHAPES = ((1.0, 1.0), (1.0, 1.25), (1.0, 1.0), (1.25, 1.0), (1.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class SequencePlan:
    """What one sequence shows and how it is filmed. image_size: (height, width)."""

    category: str
    name: str
    captions: tuple[str, ...]
    scene: Scene
    path: CameraPath
    image_size: tuple[int, int]
    intrinsics_format: str
    quality: float


def sequence_random(seed: int, category: str, index: int, stream: int) -> Random:
    """A generator of its own for every purpose of a sequence: a further draw in one leaves the others as they were."""
    return np.random.default_rng([seed, zlib.crc32(category.encode()), index, stream])


def plan_sequence(*, seed: int, category: str, index: int, num_frames: int, short_side: int) -> SequencePlan:
    """The sequence number `index` of a category: its object, place, light and camera path."""
    thing = build_object(category, sequence_random(seed, category, index, 0))
    place = sequence_random(seed, category, index, 1)
    ground = _ground(place)
    shape = IMAGE_SHAPES[index % len(IMAGE_SHAPES)]
    image_size = (round(shape[0] * short_side), round(shape[1] * short_side))
    center, radius = bounding_sphere(thing.solids)
    walk = sequence_random(seed, category, index, 2)
    path = plan_path(walk, num_frames=num_frames, image_size=image_size, target=center, radius=radius)
    return SequencePlan(
        category=category,
        name=f"synthetic_{index:05d}",
        captions=_captions(thing, category, ground.name),
        scene=Scene(
            solids=thing.solids,
            ground=ground,
            background=_background(place),
            light=_light(place),
            ambient=place.uniform(0.45, 0.6),
        ),
        path=path,
        image_size=image_size,
        intrinsics_format=INTRINSICS_FORMATS[index % len(INTRINSICS_FORMATS)],
        quality=float(walk.uniform(0.8, 2.2)),
    )


def _captions(thing: ProceduralObject, category: str, ground: str) -> tuple[str, ...]:
    plain = f"{thing.color} {category}"
    words = f"{thing.pattern} {plain}" if thing.pattern in ("striped", "dotted", "checked") else plain
    return (
        f"{_article(plain)} {plain} on a {ground}",
        f"{_article(words)} {words} standing on a {ground}",
        f"a photo of {_article(words)} {words}",
    )


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


def _ground(random: Random) -> Ground:
    name = str(random.choice(GROUNDS))
    one, other = (PALETTE[str(word)] for word in random.choice(list(PALETTE), 2, replace=False))
    natural: dict[str, tuple[Color, Color]] = {
        "wooden floor": ((0.68, 0.46, 0.27), (0.48, 0.29, 0.15)),
        "lawn": ((0.25, 0.45, 0.12), (0.45, 0.60, 0.20)),
        "stone pavement": ((0.55, 0.53, 0.50), (0.38, 0.38, 0.42)),
    }
    tint = random.uniform(0.65, 1.25) * random.uniform(0.8, 1.2, 3)
    color, accent = natural.get(name, (one, other))
    return Ground(
        name=name,
        color=_tinted(color, tint),
        accent=_tinted(accent, tint),
        scale=random.uniform(0.9, 1.7),
        angle=random.uniform(0, np.pi),
        radius=random.uniform(2.0, 6.0),
        seed=random.uniform(0, 6),
    )


def _background(random: Random) -> Background:
    high = np.asarray(PALETTE[str(random.choice(list(PALETTE)))]) * 0.55 + random.uniform(0.15, 0.4)
    low = 0.5 * high + random.uniform(0.1, 0.5, 3)
    return Background(
        low=_tinted(low, np.ones(3)),
        high=_tinted(high, np.ones(3)),
        waves=(random.uniform(0.03, 0.13), random.uniform(0.02, 0.08)),
        phases=(random.uniform(0, 6), random.uniform(0, 6)),
    )


def _light(random: Random) -> np.ndarray:
    azimuth, elevation = random.uniform(-np.pi, np.pi), random.uniform(np.radians(38), np.radians(72))
    flat = np.cos(elevation)
    return np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], np.float32)


def _tinted(color: np.ndarray | Color, tint: np.ndarray) -> Color:
    r, g, b = np.clip(np.asarray(color) * tint, 0.03, 0.97)
    return float(r), float(g), float(b)
