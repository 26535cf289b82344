"""Analytic solids against marching along the ray, and what is built from them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from preprocessing.synthetic.camera_paths import ELEVATION_RANGE, plan_path
from preprocessing.synthetic.files import sample_surface
from preprocessing.synthetic.objects import CATEGORIES, bounding_sphere, build_object
from preprocessing.synthetic.scenes import plan_sequence
from preprocessing.synthetic.shapes import CappedCone, Ellipsoid, Solid, Torus
from preprocessing.synthetic.textures import GROUNDS, PALETTE, PATTERNS, Ground, Material, paint, paint_ground

GRAY = Material(color=(0.5, 0.5, 0.5))
TURN = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0].astype(np.float32)
CENTER = np.array([0.2, -0.1, 0.3], np.float32)
SIZES = np.diag([0.5, 0.3, 0.8]).astype(np.float32)

Inside = Callable[[NDArray], NDArray]


def _cone_level(local: NDArray, bottom: float, top: float) -> NDArray:
    x, y, z = local
    return np.maximum(np.hypot(x, y) - (bottom + (top - bottom) * (z + 1) / 2), np.abs(z) - 1)


def _torus_level(local: NDArray, ring: float, tube: float, taper: float) -> NDArray:
    x, y, z = local
    return np.hypot(np.hypot(x, y) / (1 + taper * z) - ring, z) - tube


# name: solid, and a function that is negative inside it, of local coordinates
SOLIDS: dict[str, tuple[Solid, Inside]] = {
    "ellipsoid": (
        Ellipsoid(frame=TURN @ SIZES, center=CENTER, material=GRAY),
        lambda p: np.linalg.norm(p, axis=0) - 1,
    ),
    "cylinder": (
        CappedCone(frame=TURN @ SIZES, center=CENTER, material=GRAY),
        lambda p: _cone_level(p, 1.0, 1.0),
    ),
    "cone": (
        CappedCone(frame=0.6 * TURN, center=CENTER, material=GRAY, bottom=1.0, top=0.3),
        lambda p: _cone_level(p, 1.0, 0.3),
    ),
    "donut": (
        Torus(frame=TURN @ SIZES * 2, center=CENTER, material=GRAY, ring=0.36, tube=0.17),
        lambda p: _torus_level(p, 0.36, 0.17, 0.0),
    ),
    "apple": (
        Torus(frame=TURN * 1.5, center=CENTER, material=GRAY, ring=0.15, tube=0.35, taper=0.35),
        lambda p: _torus_level(p, 0.15, 0.35, 0.35),
    ),
}


def _rays(solid: Solid, num_rays: int) -> tuple[NDArray, NDArray]:
    """Rays from one eye at and beside the solid, with lengths other than 1."""
    random = np.random.default_rng(1)
    eye = solid.center + np.array([2.5, 1.5, 1.0])
    targets = solid.center[:, None] + random.normal(0, 0.6 * solid.bounding_radius, (3, num_rays))
    directions = (targets - eye[:, None]) * random.uniform(0.3, 2, num_rays)
    return eye.astype(np.float32), directions.astype(np.float32)


@pytest.mark.parametrize("name", SOLIDS)
def test_first_hit_is_where_marching_finds_it(name: str) -> None:
    solid, level = SOLIDS[name]
    origin, directions = _rays(solid, 200)
    t = solid.intersect(origin, directions)
    length = np.linalg.norm(directions, axis=0)
    distances = np.linspace(0, 6, 2401)  # steps of 2.5e-3 object units; the solid is nearer than 6
    inverse = np.linalg.inv(solid.frame.astype(np.float64))
    points = origin[:, None, None] + directions[:, :, None] * (distances / length[:, None])
    inside = level(np.einsum("ij,jnk->ink", inverse, points - solid.center[:, None, None])) < 0
    marched = np.where(inside.any(1), distances[inside.argmax(1)], np.inf)
    hit = np.isfinite(t)
    assert 0.2 < hit.mean() < 0.95, "the test needs rays that hit and rays that miss"
    # A ray that only grazes the solid may be seen by one of the two.
    assert np.mean(hit == np.isfinite(marched)) > 0.985
    both = hit & np.isfinite(marched)
    # Marching is late by up to one step; sphere tracing stops within 2e-3 where the surface is steep to the ray.
    difference = np.abs(t[both] * length[both] - marched[both])
    assert np.quantile(difference, 0.98) < 4e-3


@pytest.mark.parametrize("name", SOLIDS)
def test_normals_are_the_gradient_of_the_level(name: str) -> None:
    solid, level = SOLIDS[name]
    origin, directions = _rays(solid, 300)
    t = solid.intersect(origin, directions)
    hit = np.isfinite(t)
    points = (origin[:, None] + directions[:, hit] * t[hit]).astype(np.float64)
    inverse = np.linalg.inv(solid.frame.astype(np.float64))

    def at(where: NDArray) -> NDArray:
        return level(inverse @ (where - solid.center[:, None]))

    step = 1e-4 * np.eye(3)
    gradient = np.stack([at(points + s[:, None]) - at(points - s[:, None]) for s in step])
    gradient /= np.linalg.norm(gradient, axis=0)
    agreement = np.einsum("cn,cn->n", gradient, solid.normals(points.astype(np.float32)))
    assert np.quantile(agreement, 0.03) > 0.999  # but for points on an edge of a cap
    facing = np.einsum("cn,cn->n", gradient, directions[:, hit])
    assert np.mean(facing < 0) > 0.97, "what is hit first faces the eye"


@pytest.mark.parametrize("name", SOLIDS)
def test_bounds_hold_the_solid_and_are_not_wide(name: str) -> None:
    solid, _ = SOLIDS[name]
    origin, directions = _rays(solid, 3000)
    t = solid.intersect(origin, directions)
    hit = np.isfinite(t)
    distance = np.linalg.norm(origin[:, None] + directions[:, hit] * t[hit] - solid.center[:, None], axis=0)
    assert 0.6 * solid.bounding_radius < distance.max() < 1.001 * solid.bounding_radius


@pytest.mark.parametrize("category", CATEGORIES)
def test_objects_stand_on_the_ground_and_look_different_from_opposite_sides(category: str) -> None:
    plan = plan_sequence(seed=4, category=category, index=3, num_frames=2, short_side=32)
    points, colors = sample_surface(plan.scene, np.random.default_rng(0))
    # A donut lies a little aslant on its rim, which `lowest` bounds from below.
    assert -1e-3 < points[:, 2].min() < 0.12
    assert 0.3 < np.ptp(points, axis=0).max() < 1.6
    center, radius = bounding_sphere(plan.scene.solids)
    assert np.linalg.norm(points - center, axis=1).max() < 1.001 * radius
    # Turned by half a turn the nearest point is elsewhere or has another colour.
    middle = (points.min(0) + points.max(0)) / 2
    turned = (points - middle) * [-1, -1, 1] + middle
    turned = turned[::5]
    nearest = ((turned[:, None] - points[None]) ** 2).sum(2).argmin(1)
    change = np.abs(colors[nearest].astype(float) - colors[::5]).max(1) / 255
    assert np.mean(change > 0.1) > 0.1


def test_objects_of_a_category_differ() -> None:
    for category in CATEGORIES:
        things = [build_object(category, np.random.default_rng(k)) for k in range(12)]
        assert len({thing.color for thing in things}) >= 4
        radii = [bounding_sphere(thing.solids)[1] for thing in things]
        assert np.std(radii) / np.mean(radii) > 0.02
        assert {thing.color for thing in things} <= set(PALETTE)


def test_camera_paths_keep_the_object_in_the_image_and_go_all_around() -> None:
    center, radius = np.array([0.0, 0.0, 0.5]), 0.6
    sphere = np.random.default_rng(0).normal(size=(500, 3))
    sphere = center + radius * sphere / np.linalg.norm(sphere, axis=1, keepdims=True)
    outside, tilts, spreads = [], [], []
    for seed in range(30):
        random = np.random.default_rng(seed)
        path = plan_path(random, num_frames=24, image_size=(100, 125), target=center, radius=radius)
        eyes = np.stack([-camera.rotation.T @ camera.translation for camera in path.cameras]) - center
        distance = np.linalg.norm(eyes, axis=1)
        elevation = np.degrees(np.arcsin(eyes[:, 2] / distance))
        assert elevation.min() >= ELEVATION_RANGE[0] - 1e-6
        assert elevation.max() <= ELEVATION_RANGE[1] + 1e-6
        spreads.append(np.ptp(elevation))
        azimuth = np.sort(np.arctan2(eyes[:, 1], eyes[:, 0]))
        assert np.diff(azimuth, append=azimuth[0] + 2 * np.pi).max() < np.radians(30)
        assert distance.max() / distance.min() < 1.25 / 0.75
        normal = np.linalg.svd(eyes - eyes.mean(0))[2][2]
        tilts.append(np.degrees(np.arccos(abs(normal[2]))))
        for camera, gain in zip(path.cameras, path.gains, strict=True):
            pixels, depth = camera.project(sphere)
            assert (depth > 0).all()
            outside.append(np.mean((pixels < 0) | (pixels > [125, 100])))
            assert 0.9 <= gain <= 1.1
    assert np.mean(spreads) > 25, "elevation varies strongly within a sequence"
    assert np.median(tilts) < 8, "the plane of the camera centres shows where up is"
    assert np.mean(outside) < 2e-3


def test_patterns_and_grounds_have_colours_in_range_and_vary() -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (3, 2000)).astype(np.float32)
    for pattern in PATTERNS:
        painted = paint(Material(color=(0.8, 0.1, 0.1), accent=(0.1, 0.1, 0.9), pattern=pattern), points)
        assert painted.shape == points.shape
        assert painted.dtype == np.float32
        assert 0 <= painted.min() <= painted.max() <= 1
        assert (painted.std(1).max() > 0.05) == (pattern != "plain"), pattern
    for name in GROUNDS:
        ground = Ground(
            name=name, color=(0.2, 0.5, 0.3), accent=(0.6, 0.3, 0.2), scale=1.2, angle=0.4, radius=3.0, seed=1.0
        )
        painted = paint_ground(ground, points[0] * 3, points[1] * 3)
        assert painted.dtype == np.float32, name
        assert painted.min() >= 0
        assert painted.max() < 1.2
        assert painted.std(1).max() > 0.05, name
