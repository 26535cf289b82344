"""Cameras of photos that have none: found as they were, gone on with after an interruption, refused with a reason."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest

from infra.errors import UserError
from infra.log import get_logger
from pipelines.cli import main
from preprocessing.captures.co3d import read_category
from preprocessing.importing.solving import features
from preprocessing.importing.solving.cameras import find_cameras, solve_cameras
from preprocessing.importing.solving.features import photo_pairs
from tests.support.photographed import FOCAL, SIZE, picture, pose_errors, poses, write_photo

COUNT = 14
# As people name them; WebP is a format that COLMAP does not read. Every third photo is to be turned by its viewer.
NAMES = [f"day one/photo {number:02d}{'.webp' if number == 5 else '.jpg'}" for number in range(COUNT)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, (name, pose) in enumerate(zip(NAMES, poses(COUNT), strict=True)):
        write_photo(folder / name, picture(pose), orientation=6 if number % 3 == 0 else 1)
    return folder


@pytest.fixture(scope="module")
def solved(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of a solution that nothing interrupted."""
    work = tmp_path_factory.mktemp("work") / "of these photos"
    solve_cameras(photos, work, placed_share=1.0)
    return work


def test_cameras_are_found_as_they_were(solved: Path) -> None:
    model = pycolmap.Reconstruction(solved / "model")
    images = sorted(model.images.values(), key=lambda image: image.name)
    assert [image.name for image in images] == NAMES
    found = np.stack([np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]]) for image in images])
    angles, distances = pose_errors(found, poses(COUNT))
    assert angles.max() < 1.0  # degrees
    assert distances.max() < 0.02  # of the circle's radius
    (camera,) = model.cameras.values()  # all photos are of one lens, turned by their viewer or not
    assert (camera.height, camera.width) == SIZE  # of the pixels as they are stored
    assert abs(camera.params[0] / FOCAL - 1) < 0.02
    assert model.num_points3D() > 300


def test_an_interrupted_search_goes_on(
    photos: Path, solved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted among the features, then among the matches; no photo and no pair is done twice."""
    calls: dict[str, list[Any]] = {"extract_features": [], "_match_apart": []}
    stop_after = {"extract_features": 2, "_match_apart": 1}

    def count(module: Any, name: str) -> None:
        original = getattr(module, name)

        def counted(*args: Any, **options: Any) -> None:
            if len(calls[name]) == stop_after.get(name):
                del stop_after[name]
                raise KeyboardInterrupt
            calls[name].append(args[-1])  # names of photos, pairs of names
            original(*args, **options)

        monkeypatch.setattr(module, name, counted)

    monkeypatch.setattr(features.os, "cpu_count", lambda: 4)
    count(pycolmap, "extract_features")
    count(features, "_match_apart")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            solve_cameras(photos, tmp_path / "work", placed_share=1.0)
    model = solve_cameras(photos, tmp_path / "work", placed_share=1.0)
    done = {name: [item for chunk in chunks for item in chunk] for name, chunks in calls.items()}
    assert {name: (len(items), len(set(items))) for name, items in done.items()} == {
        "extract_features": (COUNT, COUNT),
        "_match_apart": (COUNT * (COUNT - 1) // 2,) * 2,
    }
    # The same to the rounding of sums, which several threads add in an order that varies.
    found, expected = pycolmap.Reconstruction(str(model)), pycolmap.Reconstruction(str(solved / "model"))
    assert set(found.cameras) == set(expected.cameras)
    for number, camera in found.cameras.items():
        np.testing.assert_allclose(camera.params, expected.cameras[number].params, rtol=1e-6, atol=1e-6)
    poses, expected_poses = (
        {image.name: image.cam_from_world().matrix() for image in each.images.values()} for each in (found, expected)
    )
    assert poses.keys() == expected_poses.keys()
    for name, pose in poses.items():
        np.testing.assert_allclose(pose, expected_poses[name], rtol=1e-5, atol=1e-5)


def test_a_model_that_is_there_is_not_made_again(photos: Path, solved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pycolmap, "extract_features")
    assert solve_cameras(photos, solved, placed_share=0.5) == solved / "model"


def test_a_search_goes_on_where_the_photos_were_moved_to(photos: Path, solved: Path, tmp_path: Path) -> None:
    """Links of the work lead to where they were."""
    shutil.copytree(photos, tmp_path / "here")
    shutil.copytree(solved, tmp_path / "work")
    shutil.rmtree(tmp_path / "work/model")
    links = tmp_path / "work/photos"
    for path in links.glob("*.jpg"):
        path.unlink()
        path.symlink_to(tmp_path / "where they were" / path.name)
    solve_cameras(tmp_path / "here", tmp_path / "work", placed_share=1.0)
    assert all(path.resolve().is_relative_to(tmp_path / "here") for path in links.glob("*.jpg"))


def test_photos_of_something_else_are_left_out_and_named(photos: Path, solved: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    shutil.copytree(solved, tmp_path / "work", symlinks=True)
    shutil.rmtree(tmp_path / "work/model")
    random = np.random.default_rng(0)
    for number in range(2):
        write_photo(tmp_path / f"photos/other {number}.jpg", random.integers(0, 255, (*SIZE, 3), dtype=np.uint8))
    (tmp_path / "photos/torn.jpg").write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(UserError, match="only 14 of 17 photos found their place, 82%") as refused:
        solve_cameras(tmp_path / "photos", tmp_path / "work", placed_share=0.9)
    assert "Not placed: other 0.jpg, other 1.jpg, torn.jpg. What helps" in str(refused.value)
    assert "\n" not in str(refused.value)
    solve_cameras(tmp_path / "photos", tmp_path / "work", placed_share=0.8)


def same_picture(folder: Path) -> None:
    for number in range(4):
        write_photo(folder / f"{number}.jpg", picture(poses(1)[0]))


def two_pictures(folder: Path) -> None:
    for number in range(2):
        write_photo(folder / f"{number}.jpg", picture(poses(2)[number]))


def plain_pictures(folder: Path) -> None:
    for number in range(4):
        write_photo(folder / f"{number}.jpg", np.full((*SIZE, 3), 50 + 40 * number, np.uint8))


def unrelated_pictures(folder: Path) -> None:
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        write_photo(folder / f"{number}.jpg", noise)


def brighter_pictures(folder: Path) -> None:
    for number in range(4):
        write_photo(folder / f"{number}.jpg", (picture(poses(1)[0]) * (0.7 + 0.1 * number)).astype(np.uint8))


HEIC, VIDEO = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", b"\x00\x00\x00\x14ftypqt  \x00\x00\x00\x00"


def no_pictures(folder: Path) -> None:
    folder.mkdir()
    (folder / "IMG_1.HEIC").write_bytes(HEIC)
    (folder / "IMG_1.MOV").write_bytes(VIDEO)


def no_media(folder: Path) -> None:
    folder.mkdir()
    for name in ("notes.txt", ".hidden.jpg", "IMG_1.HEIC"):
        (folder / name).touch()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (same_picture, "all 4 photos are the same picture"),
        (two_pictures, "2 photos, at least 3 are needed"),
        (plain_pictures, "0 photos of 4 can be decoded and show enough texture .* not so 0.jpg, 1.jpg, 2.jpg, 3.jpg"),
        (unrelated_pictures, "no two photos show the same thing"),
        (brighter_pictures, "no two from places far enough apart"),
        (no_pictures, r"no photos that can be read, but 1 × a HEIC picture: convert .*; 1 × a video: .* name it alone"),
        (no_media, r"holds no photos \(\.png, .*\), but 1 × \.heic, 1 × \.txt; name the folder of the photos"),
        (lambda folder: None, "no such folder"),
    ],
)
def test_what_cannot_work_is_one_line(write: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path / "photos")
    with pytest.raises(UserError, match=message) as refused:
        solve_cameras(tmp_path / "photos", tmp_path / "work", placed_share=0.6)
    assert str(tmp_path / "photos") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_masks_among_the_photos_are_told(photos: Path, tmp_path: Path) -> None:
    for masks in (photos, photos.parent):
        with pytest.raises(
            UserError, match=r"--masks .*: the photos are in there too, .*; name a folder that holds masks"
        ):
            solve_cameras(photos, tmp_path / "work", placed_share=1.0, masks=masks)


def test_pictures_that_are_not_read_are_told_before_the_search(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_logger("import")
    monkeypatch.setattr(logging.getLogger("viewdiff"), "propagate", True)
    two_pictures(tmp_path / "photos")
    for number in range(3):
        (tmp_path / f"photos/IMG_{number}.HEIC").write_bytes(HEIC)
    (tmp_path / "photos/notes.txt").write_text("a list")
    with pytest.raises(UserError, match="2 photos, at least 3"):
        find_cameras(tmp_path / "photos", tmp_path / "below", placed_share=1.0, num_frames=10, masks=None)
    assert "only its 2 photos will be used; left out: 3 × a HEIC picture: convert it to JPEG" in caplog.text
    assert "notes" not in caplog.text


def test_import_solves_and_goes_on_as_with_a_model(
    photos: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    get_logger("import")
    monkeypatch.setattr(logging.getLogger("viewdiff"), "propagate", True)
    shutil.copytree(photos, tmp_path / "photos", ignore=shutil.ignore_patterns("*.webp"))
    root = tmp_path / "root"
    options = ["--solve-cameras", "--output", str(root), "--category", "box", "--name", "one"]
    main.dispatch(["import", str(tmp_path / "photos"), *options])
    (sequence,) = read_category(root, "box")
    assert len(sequence.frames) == COUNT - 1
    assert [path.name for path in root.iterdir()] == ["box"]  # the work is gone
    assert f"{COUNT - 1} of {COUNT - 1} photos found their place" in caplog.text
    assert ".cc:" not in capfd.readouterr().err  # nothing of COLMAP's own log


def test_each_photo_is_compared_with_what_it_may_show() -> None:
    assert photo_pairs(4, in_order=False) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert len(photo_pairs(200, in_order=False)) == 200 * 199 // 2
    for count, in_order in ((201, False), (120, True), (3, True)):
        pairs = photo_pairs(count, in_order=in_order)
        assert all(0 <= first < second < count for first, second in pairs)
        assert len(set(pairs)) == len(pairs) < 40 * count
        assert {(place, place + 1) for place in range(count - 1)} <= set(pairs)
        assert (0, count - 1) in pairs  # where a walk comes back to its start


def _crash_on_a_pair(database: Path, pairs: list[tuple[str, str]]) -> None:
    """In the place of `features._match`: native code that crashes on one pair, and notes the others."""
    if ("b", "c") in pairs:
        os.kill(os.getpid(), signal.SIGSEGV)
    with database.with_name("done").open("a") as done:
        done.writelines(f"{first} {second}\n" for first, second in pairs)


def test_a_pair_that_crashes_the_matcher_has_nothing_in_common(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = tmp_path / "features.db"
    with features.open_database(database) as content:
        camera = pycolmap.Camera(model="SIMPLE_RADIAL", width=8, height=8, params=[8, 4, 4, 0])
        number = content.write_camera(camera)
        for name in "abc":
            content.write_image(pycolmap.Image(name=name, camera_id=number))
    monkeypatch.setattr(features, "_match", _crash_on_a_pair)
    features._match_apart(database, [("a", "b"), ("a", "c"), ("b", "c")])
    assert sorted((tmp_path / "done").read_text().splitlines()) == ["a b", "a c"]
    with features.open_database(database) as content:
        numbers = {image.name: image.image_id for image in content.read_all_images()}
        assert content.exists_two_view_geometry(numbers["b"], numbers["c"])
        assert not content.exists_two_view_geometry(numbers["a"], numbers["b"])
