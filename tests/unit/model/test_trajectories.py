"""Camera paths look at the object, upright, and files are checked field by field."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from model.cameras import Cameras
from model.trajectories import OrbitConfig, angles, from_file, orbit, orbit_like, spiral

CONFIG = OrbitConfig(radius=4.0, elevation_degrees=30.0, field_of_view_degrees=50.0)


@pytest.mark.parametrize("path", [orbit, spiral])
def test_cameras_see_the_origin_in_the_middle_and_up_above(path) -> None:
    cameras = path(7, image_size=(48, 64), config=CONFIG).check()
    pixels, depth = cameras.project(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.5]]))
    # Distances of 4 in float32 leave 1e-6 of a focal length of 51 pixels.
    assert torch.allclose(pixels[:, 0], torch.tensor([32.0, 24.0]), atol=1e-3)
    assert torch.allclose(depth[:, 0], torch.tensor(4.0), atol=1e-5)
    assert (pixels[:, 1, 1] < pixels[:, 0, 1]).all()  # v grows downwards
    assert torch.allclose(pixels[:, 1, 0], torch.tensor(32.0), atol=1e-3)


def test_orbit_goes_around_once_at_one_height() -> None:
    azimuths, elevations = angles(orbit(4, image_size=(8, 8), config=CONFIG))
    assert torch.allclose(torch.rad2deg(azimuths) % 360, torch.tensor([0.0, 90.0, 180.0, 270.0]), atol=1e-3)
    assert torch.allclose(torch.rad2deg(elevations), torch.tensor(30.0), atol=1e-3)


def test_field_of_view_spans_the_picture_from_top_to_bottom() -> None:
    camera = orbit(1, image_size=(48, 64), config=CONFIG)[0]
    top_of_view = math.radians(CONFIG.field_of_view_degrees / 2)
    direction = camera.rotation.T @ torch.tensor([0.0, -math.sin(top_of_view), math.cos(top_of_view)])
    pixel, _ = camera.project((camera.centers() + direction)[None])
    assert pixel[0, 1].item() == pytest.approx(0.0, abs=1e-3)


def test_spiral_climbs_to_twice_the_elevation() -> None:
    _, elevations = angles(spiral(5, image_size=(8, 8), config=CONFIG))
    assert torch.allclose(torch.rad2deg(elevations), torch.tensor([0.0, 15.0, 30.0, 45.0, 60.0]), atol=1e-3)


def test_orbit_like_keeps_distance_height_and_field_of_view() -> None:
    cameras = orbit_like(orbit(5, image_size=(48, 64), config=CONFIG), 9)
    expected = orbit(9, image_size=(48, 64), config=CONFIG)
    assert torch.allclose(cameras.world_to_camera, expected.world_to_camera, atol=1e-4)
    assert torch.allclose(cameras.intrinsics, expected.intrinsics, atol=1e-3)


@pytest.mark.parametrize("field", ["radius", "elevation_degrees", "field_of_view_degrees"])
def test_impossible_orbits_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        OrbitConfig(**{field: -180.0})


def _content(cameras: Cameras) -> dict:
    pairs = zip(cameras.world_to_camera.tolist(), cameras.intrinsics.tolist(), strict=True)
    return {
        "image_size": list(cameras.image_size),
        "cameras": [{"world_to_camera": pose, "intrinsics": intrinsics} for pose, intrinsics in pairs],
    }


def test_file_is_read_back(tmp_path: Path) -> None:
    cameras, path = orbit(3, image_size=(48, 64), config=CONFIG), tmp_path / "path.json"
    path.write_text(json.dumps(_content(cameras)))
    read = from_file(path)
    assert read.image_size == (48, 64)
    assert torch.equal(read.world_to_camera, cameras.world_to_camera)
    assert torch.equal(read.intrinsics, cameras.intrinsics)


def _without_cameras(content: dict) -> None:
    del content["cameras"]


def _float_size(content: dict) -> None:
    content["image_size"] = [48.5, 64]


def _short_row(content: dict) -> None:
    content["cameras"][1]["world_to_camera"][2].pop()


def _text_for_a_number(content: dict) -> None:
    content["cameras"][1]["intrinsics"][0][0] = "50"


def _no_picture(content: dict) -> None:
    content["image_size"][1] = 10**30


def _no_float(content: dict) -> None:
    content["cameras"][2]["intrinsics"][0][2] = 10**400


def _infinite_in_float32(content: dict) -> None:
    content["cameras"][2]["intrinsics"][0][2] = 10**60


def _left_handed(content: dict) -> None:
    content["cameras"][1]["world_to_camera"][0] = [-value for value in content["cameras"][1]["world_to_camera"][0]]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_cameras, "non-empty list `cameras`"),
        (_float_size, "image_size"),
        (_short_row, r"cameras\[1\].world_to_camera must be 4 rows of 4"),
        (_text_for_a_number, r"cameras\[1\].intrinsics must be 3 rows of 3"),
        (_left_handed, "rotations"),
        (_no_picture, r"image_size \[48, 10+\] must be .* each at most 65536"),
        (_no_float, r"cameras\[2\].intrinsics holds a whole number that is too large"),
        (_infinite_in_float32, "must be finite"),
    ],
)
def test_bad_files_name_the_field(tmp_path: Path, spoil, message: str) -> None:
    content = _content(orbit(3, image_size=(48, 64)))
    spoil(content)
    path = tmp_path / "path.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as raised:
        from_file(path)
    assert str(path) in str(raised.value)


def test_files_that_are_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        from_file(tmp_path / "absent.json")
    for text in ("azimuth 12", "[" * 200_000, "9" * 5000):
        (tmp_path / "text.json").write_text(text)
        with pytest.raises(ValueError, match=r"text\.json: cannot be read as JSON"):
            from_file(tmp_path / "text.json")


@pytest.mark.parametrize(
    ("content", "tool"),
    [
        (
            {"camera_path": [{"camera_to_world": [1.0] * 16, "fov": 50}], "render_height": 8},
            "a camera path of nerfstudio",
        ),
        ({"fl_x": 50, "frames": [{"transform_matrix": []}]}, "a transforms.json of posed photos"),
        ({"path": [{"R": [0, 0, 0, 1], "T": [0, 0, 0], "fov": 50}], "time": 1.0}, "a camera path of instant-ngp"),
        ({"keyframes": [], "camera_type": "perspective"}, "a list of keyframes of nerfstudio's viewer"),
        ({"class_name": "PinholeCameraTrajectory", "parameters": [], "trajectory": []}, "Open3D"),
        (
            [{"id": 0, "img_name": "1", "position": [0, 0, 0], "rotation": [], "fx": 9, "fy": 9}],
            "3D Gaussian Splatting",
        ),
    ],
)
def test_paths_of_other_tools_are_called_what_they_are(content: dict | list, tool: str, tmp_path: Path) -> None:
    path = tmp_path / "path.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{tool}.*write for each camera world_to_camera and intrinsics") as refused:
        from_file(path)
    assert str(path) in str(refused.value)
