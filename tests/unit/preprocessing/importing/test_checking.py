"""Bad photos are left out and told; too few, or pictures that disagree with their cameras, end an import."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from PIL import Image

from infra.errors import UserError
from preprocessing.importing import writing
from preprocessing.importing.checking import same_shape
from preprocessing.importing.reconstructions import Photo, Reconstruction
from preprocessing.importing.writing import import_capture
from tests.support.posed_dots import SIZE, dot_offsets, draw, pinhole, pixels_of, poses, reconstruction, written


@pytest.fixture
def capture(tmp_path: Path) -> Reconstruction:
    """Photos of dots, as PNG."""
    paths = [tmp_path / f"{number}.png" for number in range(len(poses()))]
    for path, pose in zip(paths, poses(), strict=True):
        Image.fromarray(draw(pixels_of(pose))).save(path)
    return reconstruction(paths)


def imported(capture: Reconstruction, root: Path) -> list[str]:
    return import_capture(capture, root, category="thing", name="mine").lines()


def black(path: Path) -> None:
    Image.new("RGB", SIZE[::-1]).save(path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def test_bad_photos_are_left_out_with_their_reasons(tmp_path: Path, capture: Reconstruction) -> None:
    black(tmp_path / "1.png")
    truncate(tmp_path / "3.png")
    lines = imported(replace(capture, left_out=(("7.png", "no such file"),)), tmp_path / "root")
    assert lines[:4] == [
        "thing/mine: 4 of 7 photos taken, 0 with a mask",
        "  left out: 1 photo, no such file: 7.png",
        "  left out: 1 photo, black: 1.png; take it out of the reconstruction, or export the photo again",
        "  left out: 1 photo, damaged: it cannot be decoded to its end: 3.png; copy or export it again",
    ]
    sequence = written(tmp_path / "root")
    assert [frame.number for frame in sequence.frames] == [0, 1, 2, 3]
    assert dot_offsets(tmp_path / "root", sequence).max() < 0.3  # every picture with its own camera


def test_too_few_photos_end_the_import_with_all_reasons(tmp_path: Path, capture: Reconstruction) -> None:
    for number in (0, 4):
        black(tmp_path / f"{number}.png")
    truncate(tmp_path / "2.png")
    (tmp_path / "3.png").write_bytes(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00")
    message = (
        r"^model: only 2 of 6 photos can be used; 2 photos, black \(0\.png, 4\.png\): take .*; "
        r"1 photo, a HEIC picture \(3\.png\): convert it to JPEG; .*; "
        r"1 photo, damaged: it cannot be decoded to its end \(2\.png\): copy or export it again$"
    )
    with pytest.raises(UserError, match=message):
        imported(capture, tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_cameras_on_a_line_are_told_before_photos_are_decoded(tmp_path: Path, capture: Reconstruction) -> None:
    lined = []
    for number, photo in enumerate(capture.photos):
        truncate(photo.path)
        pose = poses()[0]
        pose[0, 3] += 0.1 * number
        lined.append(replace(photo, world_to_camera=pose))
    with pytest.raises(UserError, match="model: its 6 cameras stand on one line"):
        imported(replace(capture, photos=tuple(lined)), tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_an_empty_mask_leaves_its_photo_out(tmp_path: Path, capture: Reconstruction) -> None:
    photos = []
    for number, photo in enumerate(capture.photos):
        mask = np.zeros(SIZE, np.uint8)
        if number != 2:
            cv2.circle(mask, (126, 85), 80, 255, -1)
        Image.fromarray(cv2.resize(mask, (120, 90))).save(tmp_path / f"mask{number}.png")
        photos.append(replace(photo, mask_path=tmp_path / f"mask{number}.png"))
    lines = imported(replace(capture, photos=tuple(photos)), tmp_path / "root")
    assert lines[:2] == [
        "thing/mine: 5 of 6 photos taken, 5 with a mask",
        "  left out: 1 photo, its mask is empty: nothing in it is white: 2.png; write masks that are white (255) where "
        "the object is and black elsewhere",
    ]
    for frame in written(tmp_path / "root").frames:  # made of half the size, kept in the photo's
        assert cv2.imread(str(tmp_path / "root" / str(frame.mask_path)), cv2.IMREAD_GRAYSCALE).shape == SIZE


def test_alpha_is_the_mask_and_what_it_hides_is_white(tmp_path: Path, capture: Reconstruction) -> None:
    noise = np.random.default_rng(0)
    shown = cv2.circle(np.zeros(SIZE, np.uint8), (126, 85), 80, 255, -1)
    for photo in capture.photos:
        colors = np.asarray(Image.open(photo.path)).copy()
        colors[shown == 0] = noise.integers(0, 256, (int((shown == 0).sum()), 3))
        Image.fromarray(np.dstack([colors, shown])).save(photo.path)
    lines = imported(capture, tmp_path / "root")
    assert "  6 photos put on white where they are transparent" in lines
    assert "  6 photos masked by their alpha" in lines
    for frame in written(tmp_path / "root").frames:
        mask = cv2.imread(str(tmp_path / "root" / str(frame.mask_path)), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(mask, shown)
        image = cv2.imread(str(tmp_path / "root" / str(frame.image_path)))
        assert image[cv2.dilate(shown, np.ones((17, 17))) == 0].min() >= 250  # JPEG's blocks reach 8 pixels


def test_photos_are_copied_if_nothing_has_to_be_done(tmp_path: Path, capture: Reconstruction) -> None:
    imported(capture, tmp_path / "root")
    for frame, photo in zip(written(tmp_path / "root").frames, capture.photos, strict=True):
        assert (tmp_path / "root" / str(frame.image_path)).read_bytes() == photo.path.read_bytes()


def test_an_import_never_writes_over_its_photos(tmp_path: Path, capture: Reconstruction) -> None:
    folder = tmp_path / "root/thing/mine/images"
    folder.mkdir(parents=True)
    photos = [replace(photo, path=photo.path.rename(folder / photo.path.name)) for photo in capture.photos]
    with pytest.raises(UserError, match=r"0\.png: lies where the import is written to, .*; choose another name"):
        imported(replace(capture, photos=tuple(photos)), tmp_path / "root")
    (tmp_path / "root/thing/mine/notes.txt").touch()
    with pytest.raises(UserError, match=r"mine: holds other files, such as notes\.txt; choose another name"):
        imported(capture, tmp_path / "root")


def test_a_killed_import_is_done_again(
    tmp_path: Path, capture: Reconstruction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it was killed between the folder's rename and the annotations."""
    monkeypatch.setattr(writing, "_annotate", lambda *_: None)
    imported(capture, tmp_path / "root")
    monkeypatch.undo()
    (tmp_path / "root/thing/.mine-importing/images").mkdir(parents=True)
    (tmp_path / "root/thing/.mine-importing/images/frame000099.png").touch()
    imported(capture, tmp_path / "root")
    assert len(written(tmp_path / "root").frames) == 6
    assert not (tmp_path / "root/thing/.mine-importing").exists()


def poster() -> list[np.ndarray]:
    """Pictures of a textured square in the plane z = 0, side 4, as the cameras see it."""
    texture = cv2.resize(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), (512, 512))
    to_world = np.array([[4 / 512, 0, -2], [0, 4 / 512, -2], [0, 0, 1]])
    matrix = pinhole(scale=2).calibration_matrix()
    size = (SIZE[1] * 2, SIZE[0] * 2)
    return [cv2.warpPerspective(texture, matrix @ pose[:3, [0, 1, 3]] @ to_world, size) for pose in poster_poses()]


def poster_poses() -> np.ndarray:
    """[N, 4, 4]: `poses` on a sixth of a turn, so that neighbours see the same."""
    result = []
    for angle in np.linspace(0, 1.0, len(poses())):
        turn = np.eye(4)
        turn[:2, :2] = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
        result.append(poses()[0] @ turn)
    return np.stack(result)


def poster_capture(folder: Path, cameras: np.ndarray) -> Reconstruction:
    paths = [folder / f"{number}.png" for number in range(len(cameras))]
    for path, picture in zip(paths, poster(), strict=True):
        Image.fromarray(picture).save(path)
    capture = reconstruction(paths, pinhole(scale=2))
    photos = [replace(photo, world_to_camera=pose) for photo, pose in zip(capture.photos, cameras, strict=True)]
    return replace(capture, photos=tuple(photos))


def test_pictures_that_agree_with_their_cameras_are_called_good(tmp_path: Path) -> None:
    (line,) = (
        line
        for line in imported(poster_capture(tmp_path, poster_poses()), tmp_path / "root")
        if line.startswith("  cameras and pictures: ")
    )
    assert line.endswith("): good")
    assert float(line.split("lie ")[1].split(" px")[0]) < 0.5


LYING = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
MIRRORED = np.diag([-1.0, 1.0, 1.0, 1.0])


@pytest.mark.parametrize("wrong", ["lying", "mirrored", "another order"])
def test_pictures_of_other_cameras_are_refused(tmp_path: Path, wrong: str) -> None:
    """A reader's mistake, or the photos of another capture: nothing else would notice."""
    right = poster_poses()
    cameras = {
        "lying": LYING @ right,
        "mirrored": MIRRORED @ right @ MIRRORED,
        "another order": right[[3, 0, 4, 1, 5, 2]],
    }[wrong]
    with pytest.raises(UserError, match=r"off their epipolar lines .* the cameras are not of these photos"):
        imported(poster_capture(tmp_path, cameras), tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_a_doubtful_agreement_is_told(tmp_path: Path) -> None:
    """Upside down is nearly right for cameras that move along the horizon."""
    lines = imported(poster_capture(tmp_path, LYING @ LYING @ poster_poses()), tmp_path / "root")
    assert any(line.endswith("DOUBTFUL: look at a contact sheet before you go on") for line in lines)


@pytest.mark.parametrize("off", [0.3, 1.5, 40.0])
def test_the_reprojection_error_is_that_of_the_written_pictures(
    tmp_path: Path, capture: Reconstruction, off: float
) -> None:
    """Photos in half size: an observation that is off by a pixel of the camera is off by half of one there."""
    for photo in capture.photos:
        picture = Image.open(photo.path)
        picture.resize((SIZE[1] // 2, SIZE[0] // 2), Image.Resampling.BOX).save(photo.path)
    numbers = np.arange(20)
    photos = [
        replace(p, observations=(numbers, pixels_of(p.world_to_camera) + np.array([off, 0]))) for p in capture.photos
    ]
    capture = replace(capture, photos=tuple(photos))
    if off == 40:
        with pytest.raises(UserError, match=r"its points lie 20\.0 px \(median\) from where it says"):
            imported(capture, tmp_path / "root")
        return
    verdict = "good" if off < 1 else "more than 0.5 px: the cameras are not precise"
    expected = f"median reprojection error {off / 2:.2f} px (120 observations, now in the written pictures): {verdict}"
    assert f"  cameras and points: {expected}" in imported(capture, tmp_path / "root")


def test_a_point_behind_its_camera_is_infinitely_far_off() -> None:
    camera = pycolmap.Camera(model="PINHOLE", width=8, height=8, params=[1, 1, 0, 0])
    observed = (np.array([0, 1]), np.array([[3.0, 4.0], [0, 0]]))
    photo = Photo("one", Path("one"), None, np.eye(4), camera, observed)
    errors = photo.reprojection_errors(np.array([[0, 0, 1.0], [0, 0, -1.0]]))
    np.testing.assert_array_equal(errors, [5, np.inf])


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ((100, 200), (100, 200), True),
        ((3024, 4032), (378, 504), True),
        ((3025, 4033), (1512, 2016), True),  # half, rounded down
        ((3025, 4033), (1513, 2017), True),  # and up
        ((3024, 4032), (4032, 3024), False),
        ((3024, 4032), (2268, 4032), False),  # 16 to 9
        ((480, 640), (486, 640), False),
    ],
)
def test_sizes_of_one_shape(first: tuple[int, int], second: tuple[int, int], same: bool) -> None:
    assert same_shape(first, second) is same
    assert same_shape(second, first) is same
