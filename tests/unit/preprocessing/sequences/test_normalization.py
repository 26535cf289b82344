"""Recentring into the unit cube."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from plyfile import PlyData, PlyElement

from preprocessing.captures.capture import RejectionError
from preprocessing.sequences.normalization import (
    camera_centers,
    load_points,
    normalization,
    plausible,
    robust_box,
    upright_rotation,
)
from tests.support.captures import RADII, make_capture, move, orbit, random_rotation

# Everything is float64; coordinates are of order 1 to 10.
EXACT = 1e-9


def pixels(points: np.ndarray, pose: np.ndarray, intrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    camera_points = points @ pose[:3, :3].T + pose[:3, 3]
    homogeneous = camera_points @ intrinsics.T
    return homogeneous[:, :2] / homogeneous[:, 2:], camera_points[:, 2]


@pytest.mark.parametrize("seed", range(8))
def test_any_frame_scale_and_orientation_gives_the_same_result(seed: int) -> None:
    """The sign of SVD's normal is arbitrary: without the fix about half of these come out upside down."""
    still, moved = make_capture(seed=7, moved=False), make_capture(seed=7, moved=False)
    random = np.random.default_rng(seed)
    move(moved, random_rotation(random), 10 * random.normal(size=3), float(np.exp(2 * random.normal())))
    expected = normalization(still.points, still.world_to_camera)
    result = normalization(moved.points, moved.world_to_camera)
    np.testing.assert_allclose(
        result.cameras(moved.world_to_camera), expected.cameras(still.world_to_camera), atol=EXACT
    )
    np.testing.assert_allclose(result.points(moved.points), expected.points(still.points), atol=EXACT)
    np.testing.assert_allclose(result.scene_bounds, expected.scene_bounds, atol=EXACT)


def test_object_stands_upright_in_the_unit_cube_and_the_first_camera_is_at_azimuth_zero() -> None:
    capture = make_capture(seed=3)
    result = normalization(capture.points, capture.world_to_camera)
    points, cameras = result.points(capture.points), result.cameras(capture.world_to_camera)
    np.testing.assert_allclose(points.max(axis=0), RADII, atol=EXACT)  # z up, and x towards the first camera
    np.testing.assert_allclose(points.min(axis=0), -RADII, atol=EXACT)
    np.testing.assert_allclose(result.scene_bounds, [-RADII, RADII], atol=EXACT)
    assert np.linalg.det(result.rotation) == pytest.approx(1)
    first = camera_centers(cameras)[0]
    assert first[0] > 0
    assert first[1] == pytest.approx(0, abs=EXACT)
    assert first[2] > 0  # the orbit looks down from above


def test_cameras_stay_rigid_and_see_the_same_picture() -> None:
    capture = make_capture(seed=4)
    result = normalization(capture.points, capture.world_to_camera)
    normalized = result.points(capture.points)
    homogeneous = np.c_[capture.points, np.ones(len(capture.points))] @ result.matrix().T
    np.testing.assert_allclose(homogeneous[:, :3], normalized, atol=EXACT)
    for before, after, intrinsics in zip(
        capture.world_to_camera, result.cameras(capture.world_to_camera), capture.intrinsics, strict=True
    ):
        np.testing.assert_allclose(after[:3, :3] @ after[:3, :3].T, np.eye(3), atol=EXACT)
        expected, depth = pixels(capture.points, before, intrinsics)
        found, scaled_depth = pixels(normalized, after, intrinsics)
        np.testing.assert_allclose(found, expected, atol=1e-7)  # divided by depth, times a focal length of 70
        np.testing.assert_allclose(scaled_depth, result.scale * depth, rtol=EXACT)


@pytest.mark.parametrize("num_points", [30, 4000])
def test_one_outlier_changes_nothing(num_points: int) -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (num_points, 3))
    box = robust_box(points)
    for outlier in ([1e6, 0, 0], [0, -50.0, 3.0], [5.0, 5.0, 5.0]):
        np.testing.assert_array_equal(robust_box(np.vstack([points, outlier])), box)


def test_floating_points_change_nothing_but_tips_stay() -> None:
    random = np.random.default_rng(0)
    heights = 1 - np.sqrt(random.uniform(size=5000))  # a cone's surface is spread evenly: few points near the tip
    angles = random.uniform(0, 2 * np.pi, 5000)
    cone = np.stack([(1 - heights) * np.cos(angles), (1 - heights) * np.sin(angles), 2 * heights], axis=1)
    floating = random.uniform(-20, 20, (50, 3))
    np.testing.assert_array_equal(robust_box(np.vstack([cone, floating])), np.stack([cone.min(0), cone.max(0)]))


def test_reasons_for_rejection() -> None:
    capture = make_capture(moved=False)
    on_a_line = np.stack([np.eye(4)] * 5)
    on_a_line[:, 0, 3] = np.arange(5)
    with pytest.raises(RejectionError, match="on a line"):
        normalization(capture.points, on_a_line)
    in_one_place = np.stack([np.eye(4)] * 5)
    with pytest.raises(RejectionError, match="on a line"):
        normalization(capture.points, in_one_place)
    from_above = np.stack([np.diag([1.0, -1.0, -1.0, 1.0])] * 4)
    from_above[:, :2, 3] = [[0, 0], [1, 0], [0, 1], [1, 1]]
    with pytest.raises(RejectionError, match="up is undecided"):
        normalization(capture.points, from_above)
    with pytest.raises(RejectionError, match="no extent"):
        normalization(np.ones((30, 3)), capture.world_to_camera)


@pytest.mark.parametrize("elevation", [-1.2, 0.0, 1.4])
def test_up_is_found_from_any_elevation(elevation: float) -> None:
    rotation = upright_rotation(orbit(12, elevation=elevation))
    np.testing.assert_allclose(rotation[2], [0, 0, 1], atol=EXACT)


def test_cameras_far_from_all_others_are_not_plausible() -> None:
    capture = make_capture(seed=5)
    poses = capture.world_to_camera.copy()
    poses[3, :3, 3] *= 1000
    assert plausible(poses, capture.points).tolist() == [index != 3 for index in range(12)]


def write_ply(path: Path, points: np.ndarray, *, text: bool = False) -> None:
    vertices = np.array([tuple(point) for point in points], dtype=[(axis, "f4") for axis in "xyz"])
    PlyData([PlyElement.describe(vertices, "vertex")], text=text).write(path)


def test_point_clouds_are_read_or_rejected(tmp_path: Path) -> None:
    path = tmp_path / "pointcloud.ply"
    with pytest.raises(RejectionError, match="missing"):
        load_points(path)
    points = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    write_ply(path, points, text=True)
    np.testing.assert_allclose(load_points(path), points, rtol=1e-4)  # text has few digits
    write_ply(path, points)
    np.testing.assert_array_equal(load_points(path), points)
    data = path.read_bytes()
    for broken in (b"", b"ply\n", data[:60], data[: len(data) // 2], data.replace(b"float z", b"float w")):
        path.write_bytes(broken)
        with pytest.raises(RejectionError, match="unreadable"):
            load_points(path)
    # With a list in it the library would make room for all points before it reads the first.
    listed = data.replace(b"property float x", b"property list uchar float x")
    path.write_bytes(listed.replace(b"element vertex 40", b"element vertex 99999999999999"))
    with pytest.raises(RejectionError, match="unreadable"):
        load_points(path)
    points[:30, 1] = np.nan
    write_ply(path, points)
    with pytest.raises(RejectionError, match="10 finite points, fewer than 16"):
        load_points(path)
