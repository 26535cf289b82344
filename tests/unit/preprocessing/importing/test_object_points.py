"""Where the object is and how large: an ellipsoid of known place, seen by cameras of known poses; its silhouettes are
drawn by the test from the ellipsoid's equation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from infra.errors import UserError
from preprocessing.importing.facing import common_center, share_looking_at_one_place
from preprocessing.importing.object_points import object_points
from preprocessing.importing.reconstructions import Photo, Reconstruction
from preprocessing.sequences.normalization import MINIMUM_POINTS, normalization
from tests.support.foreign_captures import DISTANCE, FOCAL, HEIGHT, WIDTH, poses

CENTER, RADII = np.array([0.1, -0.05, 0.15]), np.array([0.7, 0.45, 0.3])
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])
Mask = Callable[[Photo], np.ndarray | None]


def capture(cameras: np.ndarray, points: np.ndarray | None = None) -> Reconstruction:
    lens = pycolmap.Camera(model="PINHOLE", width=WIDTH, height=HEIGHT, params=[FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2])
    photos = (Photo(f"{number}.jpg", Path("x"), None, pose, lens) for number, pose in enumerate(cameras))
    empty = np.empty((0, 3))
    return Reconstruction(Path("scan"), tuple(photos), empty if points is None else points, "poses take the world to")


def no_mask(photo: Photo) -> None:
    return None


def silhouette(scale: int = 1, radii: np.ndarray = RADII) -> Mask:
    """Draws masks at `scale` times the camera's size: pixels whose ray meets the ellipsoid."""

    def draw(photo: Photo) -> np.ndarray:
        v, u = (np.mgrid[: HEIGHT * scale, : WIDTH * scale] + 0.5) / scale
        rays = np.stack([(u - WIDTH / 2) / FOCAL, (v - HEIGHT / 2) / FOCAL, np.ones_like(u)], axis=-1)
        rotation, translation = photo.world_to_camera[:3, :3], photo.world_to_camera[:3, 3]
        start, along = ((-rotation.T @ translation) - CENTER) / radii, rays @ rotation / radii
        a, b, c = (along**2).sum(-1), along @ start, start @ start - 1
        return np.where(b**2 > a * c, 255, 0).astype(np.uint8)

    return draw


def ellipsoid(count: int = 300) -> np.ndarray:
    directions = np.random.default_rng(1).normal(size=(count, 3))
    return CENTER + RADII * directions / np.linalg.norm(directions, axis=1, keepdims=True)


def walls(count: int = 300) -> np.ndarray:
    directions = np.random.default_rng(2).normal(size=(count, 3))
    return 10 * directions / np.linalg.norm(directions, axis=1, keepdims=True)


def test_masks_tell_the_objects_points_from_the_rooms() -> None:
    """Also from walls that one photo shows behind the object, and no other at all."""
    scene = np.concatenate([ellipsoid(), walls()])
    found = object_points(capture(poses(), scene), silhouette(3))
    assert 290 <= len(found.points) <= 300  # a point of the silhouette's edge may miss it
    assert np.linalg.norm(found.points, axis=1).max() < 1
    assert found.how.endswith("points are the object's: those that the masks show")
    assert found.notes == ()


def test_without_masks_points_near_to_where_the_cameras_look_are_the_objects() -> None:
    scene = np.concatenate([ellipsoid(), walls()])
    found = object_points(capture(poses(), scene), no_mask)
    np.testing.assert_array_equal(found.points, scene[:300])
    assert "those within 1.6 of where the cameras look" in found.how
    near = object_points(capture(poses(), scene), no_mask, radius=0.4)
    assert np.linalg.norm(near.points, axis=1).max() <= 0.4
    assert len(near.points) == (np.linalg.norm(scene, axis=1) <= 0.4).sum()


@pytest.mark.parametrize("scale", [1, 4, 20])
def test_the_hull_of_silhouettes_has_the_objects_box(scale: int) -> None:
    """A ring of cameras above sees no underside: the hull is a little taller than the object, but not wider."""
    found = object_points(capture(poses()), silhouette(scale))
    low, high = found.points.min(axis=0), found.points.max(axis=0)
    np.testing.assert_allclose(high[:2], (CENTER + RADII)[:2], atol=0.12)
    np.testing.assert_allclose(low[:2], (CENTER - RADII)[:2], atol=0.12)
    assert (low <= CENTER - RADII + 0.05).all()
    assert (high >= CENTER + RADII - 0.05).all()
    assert "the object's size is that of its masks' visual hull" in found.how
    bounds = normalization(found.points, poses()).scene_bounds
    assert np.abs(bounds).max() == pytest.approx(1)


def test_one_bad_mask_among_many_does_not_cut_the_hull() -> None:
    many = np.concatenate([poses()] * 3)
    good = silhouette()
    found = object_points(capture(many), lambda photo: good(photo) * (photo.name != "3.jpg"))
    np.testing.assert_allclose(np.ptp(found.points, axis=0)[:2], 2 * RADII[:2], atol=0.2)


@pytest.mark.parametrize(
    "points", [None, np.concatenate([ellipsoid(), walls()])], ids=["without points", "with points"]
)
def test_inverted_masks_are_refused(points: np.ndarray | None) -> None:
    good = silhouette()
    with pytest.raises(UserError, match=r"scan: 8 of 8 masks are white along the picture's edges .* invert them"):
        object_points(capture(poses(), points), lambda photo: 255 - good(photo))


def test_masks_of_an_object_larger_than_the_pictures_are_not_taken_for_inverted() -> None:
    found = object_points(capture(poses()), silhouette(radii=8 * RADII))
    assert "the object's size is that of its masks' visual hull" in found.how


def test_masks_help_where_the_points_are_only_the_rooms() -> None:
    found = object_points(capture(poses(), walls()), silhouette())
    assert "0 of 300 points are the object's: those that the masks show; the object's size is that of" in found.how
    assert np.abs(found.points - CENTER).max() < 0.9


def test_without_anything_a_sphere_stands_for_the_object() -> None:
    """Two thirds of what the pictures' shorter side shows at the common centre."""
    found = object_points(capture(poses()), no_mask)
    radius = DISTANCE * HEIGHT / 2 / FOCAL * 2 / 3
    np.testing.assert_allclose(np.linalg.norm(found.points, axis=1), radius)
    np.testing.assert_allclose(np.ptp(found.points, axis=0), 2 * radius, rtol=0.02)
    assert len(found.points) >= MINIMUM_POINTS
    assert "--object-radius sets another" in found.how
    said = object_points(capture(poses()), no_mask, radius=0.25)
    np.testing.assert_allclose(np.linalg.norm(said.points, axis=1), 0.25)


def test_the_common_center_is_where_the_axes_meet() -> None:
    place = np.array([3.0, -2.0, 5.0])
    moved = poses()
    moved[:, :3, 3] -= moved[:, :3, :3] @ place
    np.testing.assert_allclose(common_center(moved), place, atol=1e-9)
    assert share_looking_at_one_place(moved) == 1
    assert share_looking_at_one_place(FLIP @ moved) == 0
    assert share_looking_at_one_place(np.linalg.inv(moved)) == 0  # parallel


@pytest.mark.parametrize(
    "points", [None, np.concatenate([ellipsoid(), walls()])], ids=["without points", "with points"]
)
@pytest.mark.parametrize(
    ("meant_as", "reading"),
    [
        (lambda cameras: FLIP @ cameras, "read with the camera's y and z axes turned round"),
        (np.linalg.inv, "read inverted"),
        (lambda cameras: np.linalg.inv(FLIP @ cameras @ FLIP), "read inverted"),
        (lambda cameras: FLIP @ np.linalg.inv(cameras), "read inverted"),
    ],
    ids=["OpenGL's axes", "camera to world", "both of it", "world to camera as OpenGL's camera to world"],
)
def test_poses_of_another_convention_are_refused(
    points: np.ndarray | None, meant_as: Callable[[np.ndarray], np.ndarray], reading: str
) -> None:
    """Jittered a little, as real cameras do not all look at one point from one height."""
    random = np.random.default_rng(0)
    cameras = poses()
    for camera, angle in zip(cameras, random.normal(scale=0.08, size=len(cameras)), strict=True):
        tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
        camera[:3] = tilt @ camera[:3]
        camera[:3, 3] += random.normal(scale=0.1, size=3)
    message = rf"scan: its cameras do not look at one place, but do when .* {reading}.*; poses take the world to"
    with pytest.raises(UserError, match=message):
        object_points(capture(meant_as(cameras), points), no_mask)


@pytest.mark.parametrize("mask", [no_mask, silhouette()], ids=["without masks", "with masks"])
@pytest.mark.parametrize("points", [None, ellipsoid()], ids=["without points", "with points"])
def test_cameras_on_a_line_are_refused(points: np.ndarray | None, mask: Mask) -> None:
    """On a slider along one side of the object."""
    cameras = np.stack([poses()[0]] * 8)
    cameras[:, 0, 3] += np.linspace(-0.5, 0.5, 8)
    with pytest.raises(UserError, match=r"scan: its 8 cameras stand on one line or in one place, .* take photos from"):
        object_points(capture(cameras, points), mask)


def test_some_cameras_that_do_not_see_it_are_told() -> None:
    cameras = poses()
    cameras[2] = FLIP @ cameras[2]
    found = object_points(capture(cameras, ellipsoid()), no_mask)
    assert found.notes == ("the object lies behind 1 of 8 cameras: 2.jpg",)


def test_too_few_points_are_told_with_what_to_do() -> None:
    with pytest.raises(UserError, match=r"scan: only 0 of 300 points are the object's; give masks .* --object-radius"):
        object_points(capture(poses(), walls()), no_mask)
    nothing = replace(capture(poses()), points=ellipsoid(5))
    with pytest.raises(UserError, match="only 5 of 5 points are the object's"):
        object_points(nothing, no_mask)
