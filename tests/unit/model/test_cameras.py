"""model/cameras.py: projection, rays, resize and crop agree with each other."""

from __future__ import annotations

import math

import pytest
import torch

from model.cameras import Cameras


def _random_cameras(*shape: int, seed: int = 0, image_size: tuple[int, int] = (48, 80)) -> Cameras:
    """Cameras about 4 units from the origin that look roughly at it, off-centre principal points, in float64."""
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(*shape, 3, 3, generator=generator, dtype=torch.float64)).Q
    rotation = rotation * torch.linalg.det(rotation)[..., None, None]
    pose = torch.eye(4, dtype=torch.float64).expand(*shape, 4, 4).clone()
    pose[..., :3, :3] = rotation
    pose[..., :3, 3] = torch.tensor([0.1, -0.2, 4.0], dtype=torch.float64)
    intrinsics = torch.tensor([[70.0, 0.0, 38.5], [0.0, 65.0, 25.25], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return Cameras(pose, intrinsics.expand(*shape, 3, 3).clone(), image_size)


def _random_points(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


def test_a_hand_computed_projection() -> None:
    pose = torch.tensor([[0.0, 1, 0, 0], [0, 0, -1, 0], [-1, 0, 0, 5], [0, 0, 0, 1]])  # at x = 5, looking at -x, z up
    cameras = Cameras(pose, torch.tensor([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]]), (80, 100))
    assert torch.equal(cameras.centers(), torch.tensor([5.0, 0, 0]))
    pixels, depth = cameras.project(torch.tensor([[1.0, 0.4, 0.2]]))
    # 4 in front; y = 0.4 is to the right of a viewer who looks along -x with z up; z = 0.2 is above the middle.
    torch.testing.assert_close(pixels, torch.tensor([[50 + 100 * 0.1, 40 - 100 * 0.05]]))
    torch.testing.assert_close(depth, torch.tensor([4.0]))


def test_center_is_at_camera_origin() -> None:
    cameras = _random_cameras(2, 3)
    camera_frame = (cameras.rotation @ cameras.centers()[..., None])[..., 0] + cameras.translation
    torch.testing.assert_close(camera_frame, torch.zeros(2, 3, 3, dtype=torch.float64))


def test_rays_project_to_pixel_centres_at_their_depth() -> None:
    cameras = _random_cameras(2, image_size=(6, 10))
    directions = cameras.ray_directions()
    assert directions.shape == (2, 6, 10, 3)
    points = cameras.centers()[:, None, None] + 2.5 * directions
    pixels, depth = cameras.project(points.flatten(1, 2))
    torch.testing.assert_close(depth, torch.full_like(depth, 2.5))
    pixels = pixels.unflatten(1, (6, 10))
    torch.testing.assert_close(pixels[0, 4, 7], torch.tensor([7.5, 4.5], dtype=torch.float64))
    torch.testing.assert_close(pixels[1, 0, 0], torch.tensor([0.5, 0.5], dtype=torch.float64))


def test_resize_scales_pixels_and_crop_shifts_them() -> None:
    cameras, points = _random_cameras(4), _random_points(4, 7)
    pixels, depth = cameras.project(points)
    resized = cameras.resize((24, 160))
    assert resized.image_size == (24, 160)
    torch.testing.assert_close(resized.project(points)[0], pixels * torch.tensor([2.0, 0.5], dtype=torch.float64))
    cropped = cameras.crop(3, 11, (20, 30))
    assert cropped.image_size == (20, 30)
    torch.testing.assert_close(cropped.project(points)[0], pixels - torch.tensor([11.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(cropped.project(points)[1], depth)
    torch.testing.assert_close(cameras.project(points)[0], pixels)  # the original is untouched


def test_points_broadcast_over_cameras() -> None:
    cameras, points = _random_cameras(2, 3), _random_points(5)
    pixels, depth = cameras.project(points)
    assert pixels.shape == (2, 3, 5, 2)
    assert depth.shape == (2, 3, 5)
    torch.testing.assert_close(pixels[1, 2], cameras[1, 2].project(points)[0])


def test_a_point_in_the_camera_plane_has_a_finite_pixel() -> None:
    cameras = _random_cameras()
    pixels, _ = cameras.project(cameras.centers()[None])
    assert torch.isfinite(pixels).all()


def test_autocast_loses_no_digits() -> None:
    cameras, points = _random_cameras(2).to(torch.float32), _random_points(5).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pixels, directions, centers = cameras.project(points)[0], cameras.ray_directions(), cameras.centers()
    assert torch.equal(pixels, cameras.project(points)[0])
    assert torch.equal(directions, cameras.ray_directions())
    assert torch.equal(centers, cameras.centers())


def test_index_stack_cat_and_to() -> None:
    cameras = _random_cameras(2, 3)
    stacked = Cameras.stack([cameras[0], cameras[1]])
    torch.testing.assert_close(stacked.world_to_camera, cameras.world_to_camera)
    assert Cameras.stack([cameras, cameras], dim=1).shape == (2, 2, 3)
    assert Cameras.cat([cameras, cameras[:, :1]], dim=1).shape == (2, 4)
    assert cameras.to(torch.float32).intrinsics.dtype == torch.float32
    with pytest.raises(ValueError, match="one image size"):
        Cameras.stack([cameras, cameras.resize((8, 8))])


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[..., 4, 4\]"):
        Cameras(torch.eye(3), torch.eye(3), (8, 8))
    with pytest.raises(ValueError, match=r"\[..., 4, 4\]"):
        Cameras(torch.eye(4).expand(2, 4, 4), torch.eye(3), (8, 8))
    for image_size in ((0, 8), (8.0, 8), (8,)):
        with pytest.raises(ValueError, match="image_size"):
            Cameras(torch.eye(4), torch.eye(3), image_size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pose_entry", "focal", "message"),
    [(math.nan, 1.0, "finite"), (2.0, 1.0, "rotations"), (-1.0, 1.0, "rotations"), (1.0, -1.0, "focal")],
)
def test_check_names_what_is_wrong(pose_entry: float, focal: float, message: str) -> None:
    pose, intrinsics = torch.eye(4), torch.eye(3)
    pose[0, 0], intrinsics[1, 1] = pose_entry, focal
    with pytest.raises(ValueError, match=message):
        Cameras(pose, intrinsics, (8, 8)).check()
    _random_cameras(2, 3).check()


def test_both_matrices_have_one_type() -> None:
    with pytest.raises(ValueError, match=r"world_to_camera is torch\.float32, intrinsics are torch\.float64"):
        Cameras(torch.eye(4), torch.eye(3, dtype=torch.float64), (8, 8))


def test_singular_intrinsics_and_scaled_poses_are_refused() -> None:
    """Positive focal lengths do not suffice: here both rows are the same."""
    intrinsics, pose = torch.tensor([[8.0, 8.0, 4.0], [8.0, 8.0, 4.0], [0.0, 0.0, 1.0]]), torch.eye(4)
    for singular in (intrinsics, torch.diag(torch.tensor([1e-9, 8.0, 1.0]))):
        with pytest.raises(ValueError, match="intrinsics are singular"):
            Cameras(torch.eye(4), singular, (8, 8)).check()
    pose[3, 3] = 2.0
    with pytest.raises(ValueError, match="last row of world_to_camera"):
        Cameras(pose, 8 * torch.eye(3).index_fill(0, torch.tensor([2]), 1 / 8), (8, 8)).check()
