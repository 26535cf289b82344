"""transforms.json as its many writers write it: each field used, refused by name and value, or known not to matter."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.errors import UserError
from preprocessing.importing.checking import check_photos
from preprocessing.importing.reading import read_reconstruction
from preprocessing.importing.reconstructions import Reconstruction
from tests.support.foreign_captures import (
    FOCAL,
    HEIGHT,
    NAMES,
    WIDTH,
    frames,
    points,
    poses,
    write_cloud,
    write_photos,
    write_transforms,
)

IMAGES = [f"images/{name}" for name in NAMES]


def read(source: Path, images: Path | None = None, masks: Path | None = None) -> Reconstruction:
    return read_reconstruction(source, images, masks)


def assert_posed(capture: Reconstruction, names: list[str]) -> None:
    assert [photo.name for photo in capture.photos] == names
    for photo, pose in zip(capture.photos, poses(), strict=True):
        np.testing.assert_allclose(photo.world_to_camera, pose, atol=1e-12)
        assert photo.path.is_file()


def framed(**fields: Any) -> list[dict[str, Any]]:
    """Frames with fields of their own."""
    return [{**frame, **fields} for frame in frames(IMAGES)]


def with_matrix(change: Any) -> list[dict[str, Any]]:
    """Frames whose matrices [4, 4] were changed."""
    return [
        {**frame, "transform_matrix": np.asarray(change(np.array(frame["transform_matrix"]))).tolist()}
        for frame in frames(IMAGES)
    ]


def test_nerfstudio(tmp_path: Path) -> None:
    write_transforms(tmp_path, camera_model="OPENCV", k1=0.0, k2=0.0, p1=0.0, p2=0.0, applied_scale=1.0, fl_y=81.0)
    capture = read(tmp_path)
    assert_posed(capture, IMAGES)
    np.testing.assert_allclose(capture.points, points())
    camera = capture.photos[0].camera
    assert (camera.model_name, camera.params.tolist()) == ("PINHOLE", [FOCAL, 81.0, WIDTH / 2, HEIGHT / 2])
    assert capture.notes == ()


def test_blenders_three_files_without_endings_sizes_and_points(tmp_path: Path) -> None:
    """NeRF-synthetic: names without ending, an angle alone, photos of train and test in one world."""
    parts = {"train": range(5), "test": range(5, 8)}
    for part, numbers in parts.items():
        names = [f"{part}/r_{number}" for number in numbers]
        write_photos(tmp_path, [f"{name}.png" for name in names])
        of_part = [{**frames(NAMES)[n], "file_path": f"./{name}"} for n, name in zip(numbers, names, strict=True)]
        angle = 2 * math.atan(WIDTH / 2 / FOCAL)
        content = {"camera_angle_x": angle, "frames": [{**frame, "rotation": 0.01} for frame in of_part]}
        (tmp_path / f"transforms_{part}.json").write_text(json.dumps(content))
    capture = read(tmp_path)
    assert len(capture.photos) == 8
    for photo in capture.photos:
        assert (photo.camera.width, photo.camera.height) == (WIDTH, HEIGHT)
        np.testing.assert_allclose(photo.camera.params, [FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2])
    assert capture.points.shape == (0, 3)
    assert any("transforms_train.json, transforms_test.json are taken together" in note for note in capture.notes)
    assert len(read(tmp_path / "transforms_train.json").photos) == 5


def test_photos_that_two_files_share_are_taken_once(tmp_path: Path) -> None:
    path = write_transforms(tmp_path)
    path.rename(tmp_path / "transforms_train.json")
    content = json.loads((tmp_path / "transforms_train.json").read_text())
    (tmp_path / "transforms_test.json").write_text(json.dumps(content | {"frames": content["frames"][:4]}))
    assert_posed(read(tmp_path), IMAGES)
    (tmp_path / "transforms_test.json").write_text(json.dumps(content | {"frames": content["frames"][:4], "fl_x": 90}))
    with pytest.raises(UserError, match=r"images/000\.jpg, images/000\.jpg are all the file"):
        read(tmp_path)


def test_instant_ngp(tmp_path: Path) -> None:
    """Boxes and scales of its own world do not matter; sizes may be floats, and a frame may have its own camera."""
    fields: dict[str, Any] = {"aabb_scale": 16, "scale": 0.33, "offset": [0.5, 0.5, 0.5], "w": 64.0, "h": 48.0}
    own = framed(sharpness=3.5, cx=30.0, cy=None)
    write_transforms(tmp_path, **fields, fl_x=None, x_fov=math.degrees(2 * math.atan(0.4)), frames=own)
    capture = read(tmp_path)
    assert_posed(capture, IMAGES)
    np.testing.assert_allclose(capture.photos[3].camera.params, [80, 80, 30, 24])


def test_intrinsics_of_each_frame_come_first_and_other_fields_are_told(tmp_path: Path) -> None:
    write_transforms(tmp_path, mood="good", frames=framed(fl_x=90.0, time=0.0, weather=[1]))
    capture = read(tmp_path)
    assert capture.photos[0].camera.params[0] == 90
    assert [note.split(": ", 1)[1] for note in capture.notes] == [
        "fields that are not known here were not used: mood, weather",
        "the frames' own cameras are taken, not the file's fl_x",
    ]


def test_fields_in_the_wrong_place_are_told(tmp_path: Path) -> None:
    own = framed(ply_file_path="points.ply", n_frames=None)
    write_transforms(tmp_path, mask_path="masks/a.png", time=3, transform_matrix=[1], frames=own)
    assert [note.split(": ", 1)[1] for note in read(tmp_path).notes] == [
        "fields at the top that belong in the frames were not used: mask_path, time, transform_matrix",
        "fields in the frames that belong at the top were not used: ply_file_path",
    ]


def test_the_size_of_any_picture_stands_for_w_and_h(tmp_path: Path) -> None:
    """A photo that does not say its size is left out with its reason; others are taken."""
    names = [
        f"images/{number}.{end}" for number, end in enumerate(("tif", "webp", "bmp", "png", "jpg", "tif", "bmp", "jpg"))
    ]
    write_photos(tmp_path, names)
    (tmp_path / names[4]).write_bytes(b"\x00\x00\x00\x18ftypheic")
    (tmp_path / names[7]).unlink()
    write_transforms(tmp_path, w=None, h=None, frames=frames(names))
    capture = read(tmp_path)
    assert capture.left_out == ((names[7], "no such file"),)
    checked = check_photos(capture)
    assert [(item.name, item.reason) for item in checked.left_out] == [(names[4], "a HEIC picture")]
    assert [plan.photo.camera.params.tolist() for plan in checked.plans] == [[80, 80, 32, 24]] * 6


def test_a_uniform_scale_is_divided_out_and_told(tmp_path: Path) -> None:
    for scale in (0.98, 0.5):
        write_transforms(tmp_path, frames=with_matrix(lambda m, s=scale: m @ np.diag([s, s, s, 1])))
        capture = read(tmp_path)
        assert_posed(capture, IMAGES)
        assert capture.notes[0].endswith(f"transform_matrix scaled by {scale}, which is divided out")


def test_matrices_of_three_rows_or_few_digits(tmp_path: Path) -> None:
    write_transforms(tmp_path, frames=with_matrix(lambda m: m[:3]))
    assert_posed(read(tmp_path), IMAGES)
    write_transforms(tmp_path, frames=with_matrix(lambda m: m.round(4)))
    rotation = read(tmp_path).photos[1].world_to_camera[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(rotation, poses()[1, :3, :3], atol=2e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frames": with_matrix(lambda m: m @ np.diag([1, 1, 1.2, 1]))}, r"000\.jpg: the rotation part .* stretches"),
        ({"frames": with_matrix(lambda m: m @ np.diag([-1, 1, 1, 1]))}, r"000\.jpg: the rotation part .* mirrors"),
        ({"frames": with_matrix(lambda m: m @ np.diag([0, 0, 0, 1]))}, "has no inverse"),
        ({"frames": with_matrix(lambda m: m.T)}, r"the last row of transform_matrix is \[.*, but should be 0 0 0 1"),
        ({"frames": with_matrix(lambda m: m[:2])}, r"is no 4 × 4 or 3 × 4 matrix of numbers"),
        ({"frames": with_matrix(lambda m: m * np.nan)}, "is no 4 × 4 or 3 × 4 matrix of numbers"),
        ({"frames": [{"file_path": "a.jpg", "pose": []}]}, r"a\.jpg: has no transform_matrix; its fields are f"),
        ({"frames": [{"transform_matrix": []}]}, "frame 1 of 1 has no file_path"),
        ({"frames": [3]}, "frame 1 of 1 has no file_path"),
        ({"frames": None}, "it has no list named frames; its fields are fl_x, h, ply_file_path, w"),
        ({"frames": []}, "has 0 posed photos; at least 3 are needed"),
        ({"frames": frames(IMAGES)[:2]}, "has 2 posed photos; at least 3 are needed"),
        ({"n_frames": 5}, "n_frames is 5, but it has 8 frames"),
        ({"fl_x": 0}, "fl_x is 0 for pictures of 64 × 48; a focal length must be above 0 and in pixels"),
        ({"fl_x": 4.25}, r"fl_x is 4.25 for pictures of 64 × 48 \(it would see 165 degrees\)"),
        ({"fl_y": 166503.9}, "fl_y is 166504 for pictures of 64 × 48"),
        ({"cx": 0.5}, "cx is 0.5 for pictures of 64 × 48; it must be in pixels"),
        ({"sk_x": 0.1}, "sk_x is 0.1, a lens term"),
        ({"fl_x": "80"}, "fl_x is '80', which is no number; correct it"),
        ({"fl_x": None}, "no focal length: fl_x, camera_angle_x and x_fov are missing; its fields are f"),
        ({"fl_x": None, "camera_angle_x": 4}, r"camera_angle_x is 4; .* between 0 and 3\.142 radians"),
        ({"w": None}, "of w and h only one is there"),
        ({"w": 64.5}, "w and h are 64.5 and 48; they must be whole"),
        ({"w": 10**400}, "w is '1000.*, which is no number"),
        ({"k4": 0.01}, r"k4 is 0\.01, a lens term that a lens without a camera_model has no place for"),
        ({"camera_model": "OPENCV", "k3": 0.1, "k5": 0.02}, "k5 is 0.02, a lens term that OPENCV has no place for"),
        ({"camera_model": "OPENCV_FISHEYE", "p1": 0.1}, "p1 is 0.1, a lens term that OPENCV_FISHEYE has no place for"),
        ({"camera_model": "EQUIRECTANGULAR"}, "camera_model 'EQUIRECTANGULAR' is no lens that a pinhole"),
        ({"camera_model": 3}, "camera_model '3' is no lens"),
        ({"camera_model": "OPENCV", "is_fisheye": True}, "is_fisheye is True and camera_model 'OPENCV'"),
        ({"rolling_shutter": [0, 0.1, 0, 0]}, r"rolling_shutter is \[0, 0\.1, 0, 0\]: photos whose rows"),
        ({"distortion_params": [0.1]}, "distortion_params"),
        ({"k": [0.1, 0]}, r"k is \[0\.1, 0\]: a lens whose terms have no names; write them as k1"),
        ({"ftheta_p0": 0, "ftheta_p1": 0.002}, "ftheta_p1 is 0.002: an f-theta lens; undistort the photos first"),
        ({"orthographic": True}, "orthographic is True: photos without a perspective"),
        ({"from_na": True}, "from_na is True: other axes, those of OpenCV; negate the second and the third column of"),
        ({"normal_mts_args": {}}, r"normal_mts_args is \{\}: it marks other axes, .*; negate the first and the third"),
        ({"frames": framed(transform_matrix_end=np.eye(4).tolist())}, "transform_matrix_end is .*: a camera that"),
        ({"frames": framed(mask_path=7)}, "mask_path is '7', which is no name of a file"),
        ({"frames": framed(mask_path="masks/a.png")}, r"000\.jpg: its mask .*masks/a\.png is missing; also images/001"),
        ({"ply_file_path": "../p.ply"}, "leads out of"),
        ({"ply_file_path": "no.ply"}, "ply_file_path no.ply: point cloud file missing; export the points again"),
        ({"ply_file_path": 3}, "ply_file_path is '3', which is no name of a file"),
        ({"frames": frames(["/other/machine/000.jpg", *IMAGES[1:]])}, "leads out of .* with --images"),
        ({"frames": frames([IMAGES[1], *IMAGES[1:]])}, "images/001.jpg, images/001.jpg are all the file"),
        ({"frames": frames(["\ud800", *IMAGES[1:]])}, "is no name of a file"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_value(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    write_transforms(tmp_path, **fields)
    with pytest.raises(UserError, match=message):
        read(tmp_path)


def test_images_names_another_folder(tmp_path: Path) -> None:
    """Also for paths of another machine; the folder must be there and hold the photos."""
    write_transforms(tmp_path, frames=frames([f"D:\\scan\\images\\{name}" for name in NAMES]))
    write_photos(tmp_path / "better", NAMES)
    capture = read(tmp_path, tmp_path / "better")
    assert [photo.path for photo in capture.photos] == [tmp_path / "better" / name for name in NAMES]
    with pytest.raises(UserError, match=r"--images .*nowhere: no such folder"):
        read(tmp_path, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"none of its 8 photos is there; the first was looked for as .*empty/000\.jpg"):
        read(tmp_path, tmp_path / "empty")


def test_smaller_copies_are_taken_where_the_photos_are_missing(tmp_path: Path) -> None:
    """The camera stays that of the size that the file says."""
    write_transforms(tmp_path)
    (tmp_path / "images").rename(tmp_path / "images_4")
    write_photos(tmp_path / "images_8", NAMES)
    capture = read(tmp_path)
    assert capture.photos[0].path == tmp_path / "images_4/000.jpg"
    assert capture.photos[0].camera.width == WIDTH
    assert capture.notes == (f"{tmp_path / 'images'} is not there: images_4 beside it is taken",)


def test_missing_photos_are_left_out(tmp_path: Path) -> None:
    write_transforms(tmp_path)
    (tmp_path / IMAGES[5]).unlink()
    capture = read(tmp_path)
    assert len(capture.photos) == 7
    assert capture.left_out == ((IMAGES[5], "no such file"),)


def test_masks_of_the_frames_and_of_the_person(tmp_path: Path) -> None:
    write_photos(tmp_path, [f"masks/{Path(name).stem}.png" for name in NAMES], "L", 255)
    own = [{**f, "mask_path": f"masks/{n[:3]}.png"} for f, n in zip(frames(IMAGES), NAMES, strict=True)]
    write_transforms(tmp_path, frames=own)
    assert read(tmp_path).photos[2].mask_path == tmp_path / "masks/002.png"
    write_photos(tmp_path / "other", [f"{Path(name).stem}.png" for name in NAMES], "L", 255)
    capture = read(tmp_path, None, tmp_path / "other")
    assert capture.photos[2].mask_path == tmp_path / "other/002.png"
    assert "not those that transforms.json names" in capture.notes[0]


def test_the_cloud_of_another_world_is_a_matter_of_the_check_that_follows(tmp_path: Path) -> None:
    """Points are taken as they are: applied_transform is in matrices and points already."""
    write_transforms(tmp_path, applied_transform=[[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]], applied_scale=2.0)
    write_cloud(tmp_path / "points.ply", points() + 1)
    np.testing.assert_allclose(read(tmp_path).points, points() + 1)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["metadata.sqlite"], r"is a uCO3D dataset \(metadata\.sqlite\), which is not supported"),
        (["apple/frame_annotations.jgz"], "is a CO3Dv2 dataset already"),
        (["keyframes/corrected_cameras/1.json"], "is Polycam's raw export; ns-process-data polycam"),
        (["database.db", "a.jpg"], "is a COLMAP project without a model"),
        (["a.jpg", "b.JPG"], "holds 2 photos without cameras; --solve-cameras finds these"),
        (["day one/a.jpg", "day two/b.jpg"], "holds 2 photos without cameras; --solve-cameras finds these"),
        (["notes.txt"], r"neither transforms\.json nor .* is there, nor a COLMAP model"),
    ],
)
def test_other_folders_are_told_for_what_they_are(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=message):
        read(tmp_path)


def test_photos_of_another_kind_are_told_with_what_to_do(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.HEIC").write_bytes(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00")
    with pytest.raises(UserError, match="nor photos that can be read, but 2 × a HEIC picture: convert it to JPEG"):
        read(tmp_path)
    (tmp_path / "one.jpg").touch()
    with pytest.raises(UserError, match="holds 1 photo without cameras, also 2 × a HEIC picture: convert it to JPEG"):
        read(tmp_path)


def test_other_files_are_told_for_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "scan.ply").touch()
    with pytest.raises(UserError, match="is a file, but not JSON"):
        read(tmp_path / "scan.ply")
    with pytest.raises(UserError, match=r"nowhere\.json: no such file or folder"):
        read(tmp_path / "nowhere.json")
    (tmp_path / "transforms.json").write_text("{")
    with pytest.raises(UserError, match=r"transforms\.json: no JSON \(Expecting property name"):
        read(tmp_path)
