"""COLMAP's models as people and scripts write them; the true poses are those that the test wrote."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pycolmap
import pytest

from infra.errors import UserError
from preprocessing.importing.photos.lenses import lens_of
from preprocessing.importing.reading import read_reconstruction
from preprocessing.importing.reconstructions import Reconstruction
from tests.support.foreign_captures import (
    FOCAL,
    HEIGHT,
    NAMES,
    WIDTH,
    image_lines,
    points,
    poses,
    tracked_model,
    write_colmap,
    write_photos,
)


def read(model: Path) -> Reconstruction:
    return read_reconstruction(model, model.parent / "images", None)


def assert_whole(capture: Reconstruction, names: list[str]) -> None:
    """All photos, with their poses and files, and all points."""
    assert [photo.name for photo in capture.photos] == names
    for photo, pose in zip(capture.photos, poses(), strict=True):
        np.testing.assert_allclose(photo.world_to_camera, pose, atol=1e-12)
        assert photo.path.is_file()
    np.testing.assert_allclose(capture.points, points())
    assert capture.left_out == ()


@pytest.mark.parametrize(
    ("text", "lacks_lines"),
    [
        ("\n\n".join(image_lines(NAMES)) + "\n\n", False),
        ("\n\n".join(image_lines(NAMES)), False),
        ("\n".join(image_lines(NAMES)), True),
        ("\n".join(image_lines(NAMES)) + "\n", True),
        ("\n".join(f"{line}\n1.5 2.5 -1 3.25 4 7" for line in image_lines(NAMES)), False),
        ("\r\n".join(f"  {line}\r\n" for line in image_lines(NAMES)), False),
        ("# photos\n" + "\n# and a note\n\n".join(image_lines(NAMES)), False),
        ("\n".join(line if number % 3 else f"{line}\n" for number, line in enumerate(image_lines(NAMES))), True),
    ],
    ids=["usual", "last line open", "no second lines", "none, ended", "points", "Windows", "comments", "some"],
)
def test_photos_are_told_by_their_fields(tmp_path: Path, text: str, lacks_lines: bool) -> None:
    capture = read(write_colmap(tmp_path, images=text))
    assert_whole(capture, NAMES)
    assert any("the second line" in note for note in capture.notes) == lacks_lines


@pytest.mark.parametrize(
    "pattern", ["photo of toy ({:02d}).jpg", "left camera/{}.jpg", "фото/中文 {}.jpg", "1 2 3 4 {}", "{}  two.png"]
)
def test_the_name_is_the_rest_of_the_line(tmp_path: Path, pattern: str) -> None:
    names = [pattern.format(number) for number in range(len(NAMES))]
    files = [name if "." in name else f"{name}.png" for name in names]
    write_photos(tmp_path / "images", files)
    model = write_colmap(tmp_path, [name if "." in name else f"{name}.png" for name in names])
    (model / "images.txt").write_text("\n".join(image_lines(names)), encoding="utf-8-sig")  # with a byte order mark
    assert_whole(read(model), names)


def test_names_in_another_form_of_unicode(tmp_path: Path) -> None:
    """macOS stores ü as u and two dots; programs on it write one letter, or the other way round."""
    names = [normalize("NFC", f"Tür {number}.jpg") for number in range(len(NAMES))]
    model = write_colmap(tmp_path, [normalize("NFD", name) for name in names])
    (model / "images.txt").write_text("\n\n".join(image_lines(names)), encoding="utf-8")
    assert_whole(read(model), names)


def test_binary_models_with_rigs_and_tracks(tmp_path: Path) -> None:
    """What pycolmap writes, as COLMAP 4 does, with rigs and frames; observations belong to their points."""
    model, cloud = tmp_path / "sparse/0", points()
    reconstruction = pycolmap.Reconstruction()
    lens = [FOCAL, 32, 24, 0.1]
    camera = pycolmap.Camera(camera_id=3, model="SIMPLE_RADIAL", width=WIDTH, height=HEIGHT, params=lens)
    reconstruction.add_camera_with_trivial_rig(camera)
    pixels = np.array([[1.5, 2.5], [30.25, 7.0], [5.0, 6.0]])
    for number, (name, pose) in enumerate(zip(NAMES, poses(), strict=True), start=1):
        image = pycolmap.Image(image_id=number, camera_id=3, name=name)
        image.points2D = [pycolmap.Point2D(pixel) for pixel in pixels]
        reconstruction.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose[:3]))
    for place in cloud:
        reconstruction.add_point3D(place, pycolmap.Track())
    reconstruction.delete_point3D(2)
    for image, point, keypoint in ((1, 1, 2), (1, 4, 0), (2, 4, 1)):
        reconstruction.add_observation(point, pycolmap.TrackElement(image, keypoint))
    model.mkdir(parents=True)
    write_photos(tmp_path / "images", NAMES)
    reconstruction.write_binary(str(model))
    assert (model / "rigs.bin").is_file()
    capture = read_reconstruction(tmp_path, tmp_path / "images", None)
    np.testing.assert_allclose(capture.points, np.delete(cloud, 1, axis=0))
    assert capture.photos[0].camera.params.tolist() == lens
    for photo, expected in zip(capture.photos, ([(4, 0), (1, 2)], [(4, 1)], *[[]] * 6), strict=True):
        assert photo.observations is not None
        found = {tuple(capture.points[number]): tuple(pixel) for number, pixel in zip(*photo.observations, strict=True)}
        assert found == {tuple(cloud[point - 1]): tuple(pixels[keypoint]) for point, keypoint in expected}
    text = tmp_path / "text"
    text.mkdir()
    reconstruction.write_text(str(text))
    again = read_reconstruction(text, tmp_path / "images", None)
    for one, other in zip(capture.photos, again.photos, strict=True):
        np.testing.assert_allclose(one.world_to_camera, other.world_to_camera, atol=1e-12)
        assert one.observations is not None
        assert other.observations is not None
        np.testing.assert_array_equal(one.observations[1], other.observations[1])


def test_of_several_models_the_one_with_most_photos_is_taken(tmp_path: Path) -> None:
    model = write_colmap(tmp_path)
    few = write_colmap(tmp_path / "few", images="\n".join(image_lines(NAMES)[:3]))
    folder = tmp_path / "colmap/sparse"
    folder.mkdir(parents=True)
    few.rename(folder / "0")
    model.rename(folder / "1")
    capture = read_reconstruction(tmp_path, tmp_path / "images", None)
    assert_whole(capture, NAMES)
    assert "several models (0 with 3 photos, 1 with 8 photos): 1 is taken" in capture.notes[0]


def test_models_below_the_model_that_is_taken_are_named(tmp_path: Path) -> None:
    """As where one was written in text beside the folder that it was made of."""
    model = write_colmap(tmp_path)
    shutil.copytree(model, tmp_path / "inner")
    (tmp_path / "inner").rename(model / "0")
    capture = read(model)
    assert_whole(capture, NAMES)
    assert capture.notes == (f"{model} is taken; {model / '0'}, below it, may be named instead",)


def test_points_may_be_missing(tmp_path: Path) -> None:
    model = write_colmap(tmp_path)
    (model / "points3D.txt").unlink()
    assert read(model).points.shape == (0, 3)


def test_every_lens_of_colmap_that_a_pinhole_camera_can_stand_for_is_read(tmp_path: Path) -> None:
    model = write_colmap(tmp_path)
    for name in pycolmap.CameraModelId.__members__:
        if name in ("INVALID", "EQUIRECTANGULAR"):
            continue
        lens = pycolmap.Camera.create_from_model_name(1, name, FOCAL, WIDTH, HEIGHT)
        params = " ".join(repr(float(value)) for value in lens.params)
        (model / "cameras.txt").write_text(f"1 {name} {WIDTH} {HEIGHT} {params}")
        photo = read(model).photos[0]
        assert photo.camera.model_name == name
        assert photo.camera.params.tolist() == lens.params.tolist()
        # A fisheye lens bends lines even with all terms 0.
        assert lens_of(photo.camera, (HEIGHT, WIDTH)).is_pinhole == (lens.is_undistorted() and "FISHEYE" not in name)


PINHOLE = f"1 PINHOLE {WIDTH} {HEIGHT}"


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        (f"1 EQUIRECTANGULAR {WIDTH} {HEIGHT} 64 48", r"cameras\.txt: line 2: camera model EQUIRECTANGULAR is no lens"),
        (f"{PINHOLE} 0 80 32 24", "line 2: PINHOLE with focal length 0 for pictures of 64 × 48; a focal"),
        (f"{PINHOLE} nan 80 32 24", r"PINHOLE with parameters \[nan"),
        (f"{PINHOLE} 80 32 24", "PINHOLE has 4 parameters, but 3 are written"),
        (f"1 LENS {WIDTH} {HEIGHT} 80", "camera model 'LENS' is unknown, known are SIMPLE_PINHOLE"),
        ("1 PINHOLE 0 48 80 80 32 24", "pictures of 0 × 48 pixels"),
        ("1 PINHOLE 64 x 80 80 32 24", r"line 2: has 8 fields .*CAMERA_ID, MODEL, WIDTH"),
        ("# none", r"cameras\.txt: holds no camera; export the model again"),
        (f"2 PINHOLE {WIDTH} {HEIGHT} 80 80 32 24", r"images\.txt: line 2: 000\.jpg is of camera 1, which ca"),
    ],
)
def test_cameras_that_cannot_be_are_named(tmp_path: Path, camera: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(write_colmap(tmp_path, camera=camera))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0 0 0 0 0 0 4 1 001.jpg", r"line 3: 001\.jpg: the pose .* must be a quaternion of length 1"),
        ("2 1 0 0 0 0 0 nan 1 001.jpg", r"line 3: 001\.jpg: the pose"),
        ("2 1 0 0 0 0 0 4 1", r"line 3: has 9 fields .*IMAGE_ID, QW, QX"),
        ("1.5 2.5 1.5", r"line 3: has 3 fields .*X, Y, POINT3D_ID"),
    ],
)
def test_photos_that_cannot_be_are_named(tmp_path: Path, line: str, message: str) -> None:
    lines = image_lines(NAMES)
    with pytest.raises(UserError, match=rf"images\.txt: {message}"):
        read(write_colmap(tmp_path, images="\n".join([lines[0], line, *lines[2:]])))


@pytest.mark.parametrize("is_binary", [False, True])
@pytest.mark.parametrize(("name", "what"), [("cameras", "camera"), ("images", "photo"), ("points3D", "point")])
def test_a_number_that_stands_for_two_things_is_named(tmp_path: Path, name: str, what: str, is_binary: bool) -> None:
    model = write_colmap(tmp_path)
    path = model / f"{name}.txt"
    if is_binary:
        pycolmap.Reconstruction(str(model)).write_binary(str(model))
        path = model / f"{name}.bin"
        data = path.read_bytes()
        size = {"cameras": 24 + 4 * 8, "images": 64 + len("000.jpg") + 1 + 8, "points3D": 8 + 24 + 3 + 8 + 8}[name]
        count = struct.unpack("<Q", data[:8])[0]
        path.write_bytes(struct.pack("<Q", count + 1) + data[8:] + data[8 : 8 + size])
    else:
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines, *([""] if name == "images" else []), lines[1]]))
    number = struct.unpack("<I", path.read_bytes()[8:12])[0] if is_binary else int(lines[1].split()[0])
    with pytest.raises(
        UserError, match=rf"{path.name}: {what} {number}: is there 2 times, but a number stands for one"
    ):
        read(model)


def test_another_encoding_and_points_that_are_none_are_named(tmp_path: Path) -> None:
    model = write_colmap(tmp_path)
    good = (model / "points3D.txt").read_text()
    (model / "points3D.txt").write_text(f"{good}900 1 inf 2 9 9 9 1\n")
    with pytest.raises(UserError, match=r"points3D\.txt: point 900: its position is \[1\.0, inf, 2\.0\]"):
        read(model)
    (model / "points3D.txt").write_text(good.replace("1", "\0", 1))
    with pytest.raises(UserError, match=r"points3D\.txt: line \d+: holds zero bytes: a part of the file is lost"):
        read(model)
    (model / "points3D.txt").write_text(f"{good}900 1 2\n")
    with pytest.raises(UserError, match=r"points3D\.txt: line 201: has 3 fields"):
        read(model)
    (model / "images.txt").write_bytes("\n".join(image_lines(NAMES)).replace("003", "Tür").encode("latin-1"))
    with pytest.raises(UserError, match=r"images\.txt: line 4: is not UTF-8"):
        read(model)


def test_binary_files_that_end_early_or_say_too_much_are_named(tmp_path: Path) -> None:
    model = write_colmap(tmp_path)
    pycolmap.Reconstruction(str(model)).write_binary(str(model))
    images = (model / "images.bin").read_bytes()
    for data, message in (
        (images[:200], r"images\.bin: entry 3 of 8: the file ends within it, after 200 bytes"),
        (struct.pack("<Q", 2**60) + images[8:], rf"entry 9 of {2**60}: the file ends within it"),
        (images + b"x", "end: 1 bytes follow its 8 entries"),
        (images[:-9] + b"x" * 9, r"entry 8 of 8: its name does not end"),
        (b"", "number of entries: the file ends within it"),
    ):
        (model / "images.bin").write_bytes(data)
        with pytest.raises(UserError, match=message):
            read(model)


def test_missing_photos_are_left_out_and_named(tmp_path: Path) -> None:
    model = write_colmap(tmp_path)
    for name in NAMES[:2]:
        (tmp_path / "images" / name).unlink()
    capture = read(model)
    assert [photo.name for photo in capture.photos] == NAMES[2:]
    assert [name for name, _ in capture.left_out] == NAMES[:2]
    for name in NAMES[2:6]:
        (tmp_path / "images" / name).unlink()
    with pytest.raises(UserError, match=r"has 2 posed photos, as 000\.jpg, .* are missing; at least 3 are needed"):
        read(model)
    with pytest.raises(UserError, match=r"none of its 8 photos is there; the first was looked for as .*/000\.jpg"):
        read_reconstruction(model, model, None)
    with pytest.raises(UserError, match=r"sparse: is a COLMAP model; name the folder of its photos with --images"):
        read_reconstruction(model, None, None)


def test_poses_that_do_not_fit_their_keypoints_are_told(tmp_path: Path) -> None:
    """COLMAP's own files say nothing; a pose that was changed, a point that is gone, a photo that is gone do."""
    write_photos(tmp_path / "images", NAMES)
    model = tmp_path / "sparse"
    model.mkdir()
    tracked_model().write_text(str(model))
    capture = read(model)
    assert capture.notes == ()
    assert max(photo.reprojection_errors(capture.points).max() for photo in capture.photos) < 1e-6
    lines = (model / "images.txt").read_text().splitlines()
    fields = lines[6].split()
    assert fields[9] == NAMES[1]
    moved = " ".join([*fields[:5], str(float(fields[5]) + 0.5), *fields[6:]])
    (model / "images.txt").write_text("\n".join([*lines[:6], moved, *lines[7:-2]]))
    cloud = (model / "points3D.txt").read_text().splitlines()
    (model / "points3D.txt").write_text("\n".join(cloud[:-1]))
    assert [note.split(": ", 1)[1] for note in read(model).notes] == [
        "its head says that it has 8 entries, but it holds 7",
        "its head says that it has 60 entries, but it holds 59",
        "the poses of 1 of 7 photos put their points more than 4 pixels away from where they were found: 001.jpg",
        "names points that it does not have at 7 keypoints",
    ]
