"""One's own captures: COLMAP's models and nerfstudio's transforms.json become sequences like any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
import pytest
from plyfile import PlyData, PlyElement

from infra.errors import UserError
from pipelines.cli import main
from preprocessing.captures.co3d import read_category
from preprocessing.config import PreprocessConfig
from preprocessing.importing import writing
from preprocessing.importing.checking import Checked, Plan
from preprocessing.importing.developing import Developed, develop
from preprocessing.importing.reconstructions import Reconstruction
from preprocessing.sequences.normalization import load_points
from preprocessing.sequences.screening import store_sequence
from preprocessing.shards.planning import plan_shards
from tests.support.captures import SIZE, Capture, make_capture, write_files

NAMES = [f"frame{number:06d}.jpg" for number in range(12)]
HEIGHT, WIDTH = SIZE
# Strong enough to move the picture's corners by a pixel.
DISTORTION = [-0.3, 0.05, 0.01, -0.008]


@pytest.fixture
def capture(tmp_path: Path) -> Capture:
    """Photos and masks are in photos/apple/seq_1; the points of the room around are far from the object."""
    capture = make_capture()
    write_files(tmp_path / "photos", capture)
    return capture


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return tmp_path / "photos/apple/seq_1/images"


def scene_points(capture: Capture) -> np.ndarray:
    """The object's points, and those of walls six of its sizes away."""
    extent = np.ptp(capture.points, axis=0).max()
    walls = np.random.default_rng(0).normal(size=(300, 3))
    walls *= 6 * extent / np.linalg.norm(walls, axis=1, keepdims=True)
    return np.concatenate([capture.points, capture.points.mean(0) + walls])


def write_colmap(folder: Path, capture: Capture, *, binary: bool, distortion: list[float] | None = None) -> None:
    """What COLMAP would have written."""
    model = pycolmap.Reconstruction()
    matrix = capture.intrinsics[0]
    focal_and_center = [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]]
    model.add_camera_with_trivial_rig(
        pycolmap.Camera(
            camera_id=1,
            model="PINHOLE" if distortion is None else "OPENCV",
            width=WIDTH,
            height=HEIGHT,
            params=focal_and_center + (distortion or []),
        )
    )
    for number, (name, pose) in enumerate(zip(NAMES, capture.world_to_camera, strict=True)):
        image = pycolmap.Image(image_id=number + 1, camera_id=1, name=name)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose[:3]))
    for point in scene_points(capture):
        model.add_point3D(point, pycolmap.Track())
    folder.mkdir()
    (model.write_binary if binary else model.write_text)(str(folder))


def write_transforms(folder: Path, capture: Capture, **values: Any) -> None:
    """What nerfstudio would have written next to a folder of photos."""
    matrix = capture.intrinsics[0]
    opengl = np.diag([1.0, -1.0, -1.0, 1.0])
    vertices = np.array([tuple(p) for p in scene_points(capture)], dtype=[(axis, "f8") for axis in "xyz"])
    PlyData([PlyElement.describe(vertices, "vertex")]).write(folder / "points.ply")
    content = {
        "w": WIDTH,
        "h": HEIGHT,
        "fl_x": matrix[0, 0],
        "fl_y": matrix[1, 1],
        "cx": matrix[0, 2],
        "cy": matrix[1, 2],
        "ply_file_path": "points.ply",
        "frames": [
            {"file_path": f"images/{name}", "transform_matrix": (np.linalg.inv(pose) @ opengl).tolist()}
            for name, pose in zip(NAMES, capture.world_to_camera, strict=True)
        ],
    }
    (folder / "transforms.json").write_text(json.dumps(content | values))


def run_import(source: Path, root: Path, *options: str, name: str = "mine") -> None:
    main.dispatch(["import", str(source), "--output", str(root), "--category", "fruit", "--name", name, *options])


def assert_imported(root: Path, capture: Capture) -> None:
    """Cameras, pictures and points are those of the capture; preprocessing takes the sequence."""
    (sequence,) = read_category(root, "fruit")
    assert [frame.number for frame in sequence.frames] == list(range(12))
    for frame, pose, matrix in zip(sequence.frames, capture.world_to_camera, capture.intrinsics, strict=True):
        assert frame.viewpoint is not None
        assert frame.image_size == SIZE
        found_pose, found_matrix = frame.viewpoint.to_opencv(SIZE)
        np.testing.assert_allclose(found_pose, pose, atol=1e-9)  # quaternions in text have 17 digits
        np.testing.assert_allclose(found_matrix, matrix, atol=1e-9)
    assert sequence.point_cloud_path is not None
    points = load_points(root / sequence.point_cloud_path)
    np.testing.assert_allclose(points, capture.points.astype(np.float32), rtol=1e-6)
    config = PreprocessConfig(image_size=32, minimum_frames=12)
    (task,) = plan_shards(root, config).tasks
    stored = store_sequence(root, task.sequences[0].sequence, config)
    assert len(stored.frames) == 12
    assert np.abs(stored.normalization.scene_bounds).max() == 1


@pytest.mark.parametrize("binary", [True, False])
def test_a_colmap_model_becomes_a_sequence(tmp_path: Path, capture: Capture, photos: Path, binary: bool) -> None:
    write_colmap(tmp_path / "model", capture, binary=binary)
    run_import(tmp_path / "model", tmp_path / "root", "--images", str(photos))
    assert_imported(tmp_path / "root", capture)
    copied = tmp_path / "root/fruit/mine/images/frame000003.jpg"
    assert copied.read_bytes() == (photos / NAMES[2]).read_bytes()


def test_transforms_become_a_sequence(tmp_path: Path, capture: Capture, photos: Path) -> None:
    write_transforms(photos.parent, capture)
    run_import(photos.parent, tmp_path / "root")
    assert_imported(tmp_path / "root", capture)


def test_masks_say_which_points_are_the_objects(tmp_path: Path, capture: Capture, photos: Path) -> None:
    """Masks of one half of the pictures: what lies in the other half in most of them is not the object."""
    masks = photos.parent / "masks"
    for path in masks.iterdir():
        cv2.imwrite(str(path), np.full(SIZE, 255, np.uint8))
    write_colmap(tmp_path / "model", capture, binary=True)
    options = ("--images", str(photos), "--masks", str(masks))
    with pytest.raises(UserError, match=r"\d+ of 12 cameras lie within the object's points; give masks"):
        run_import(tmp_path / "model", tmp_path / "root", *options)  # masks that show all let walls be the object's
    for path in masks.iterdir():
        mask = np.zeros(SIZE, np.uint8)
        mask[8:40, 18:46] = 255
        cv2.imwrite(str(path), mask)
    run_import(tmp_path / "model", tmp_path / "root", *options, name="other")
    (sequence,) = read_category(tmp_path / "root", "fruit")
    own = load_points(tmp_path / "root" / str(sequence.point_cloud_path))
    assert 300 < len(own) <= 400
    assert all(frame.mask_path is not None for frame in sequence.frames)


def test_lens_distortion_is_taken_out(tmp_path: Path, capture: Capture, photos: Path) -> None:
    """Dots where a distorting lens shows points are, after the import, where its pinhole camera projects them."""
    matrix = capture.intrinsics[0]
    params = [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2], *DISTORTION]
    lens = pycolmap.Camera(model="OPENCV", width=WIDTH, height=HEIGHT, params=params)
    directions = np.array([[x, y, 1.0] for x in (-0.28, 0.0, 0.28) for y in (-0.2, 0.0, 0.2)])
    v, u = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    distorted = lens.img_from_cam(directions)
    assert np.abs(distorted - (directions @ matrix.T)[:, :2]).max() > 0.8
    dots = sum(np.exp(-((u - x) ** 2 + (v - y) ** 2) / 2) for x, y in distorted)
    for name in NAMES:
        cv2.imwrite(str(photos / name), (40 + 200 * dots).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 100])
    write_colmap(tmp_path / "model", capture, binary=True, distortion=DISTORTION)
    run_import(tmp_path / "model", tmp_path / "root", "--images", str(photos))
    (sequence,) = read_category(tmp_path / "root", "fruit")
    frame = sequence.frames[0]
    assert frame.viewpoint is not None
    assert frame.image_size is not None
    picture = cv2.imread(str(tmp_path / "root" / str(frame.image_path)), cv2.IMREAD_GRAYSCALE).astype(float)
    assert picture.shape == frame.image_size
    _, found = frame.viewpoint.to_opencv(frame.image_size)
    for x, y in (directions @ found.T)[:, :2]:
        rows, columns = np.mgrid[int(y) - 3 : int(y) + 4, int(x) - 3 : int(x) + 4]
        weights = np.maximum(picture[rows, columns] - 60, 0)
        middle = [(weights * (grid + 0.5)).sum() / weights.sum() for grid in (columns, rows)]
        assert middle == pytest.approx([x, y], abs=0.2)  # a window of whole pixels cuts the dot's edge


def test_several_captures_share_a_root_and_interruptions_leave_nothing(
    tmp_path: Path, capture: Capture, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_transforms(photos.parent, capture)
    root = tmp_path / "root"
    run_import(photos.parent, root, name="one")
    original, written = writing._write_entries, []

    def interrupted(path: Path, entries: list[Any]) -> None:
        written.append(path.name)
        if len(written) == 2:
            raise KeyboardInterrupt
        original(path, entries)

    monkeypatch.setattr(writing, "_write_entries", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_import(photos.parent, root, name="two")
    monkeypatch.undo()
    run_import(photos.parent, root, name="two")
    one, two = read_category(root, "fruit")
    assert (len(one.frames), len(two.frames)) == (12, 12)
    with pytest.raises(UserError, match="has a sequence 'two' already; choose another name"):
        run_import(photos.parent, root, name="two")
    with pytest.raises(UserError, match=r"name 'a/b': use letters"):
        run_import(photos.parent, root, name="a/b")


def test_two_imports_of_one_name_do_not_meet(
    tmp_path: Path, capture: Capture, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is refused while the first writes, and when it looked at the place before the first was done."""
    write_transforms(photos.parent, capture)
    root, original = tmp_path / "root", writing.check_photos

    def beside(reconstruction: Reconstruction) -> Checked:
        monkeypatch.setattr(writing, "check_photos", original)
        run_import(photos.parent, root, name="other")
        return original(reconstruction)

    def within(plan: Plan) -> Developed:
        monkeypatch.undo()
        with pytest.raises(UserError, match="another import writes 'mine' at this moment; wait until it is over"):
            run_import(photos.parent, root)
        return develop(plan)

    monkeypatch.setattr(writing, "develop", within)
    run_import(photos.parent, root)
    assert_imported(root, capture)
    monkeypatch.setattr(writing, "check_photos", beside)
    with pytest.raises(UserError, match="has a sequence 'other' already"):
        run_import(photos.parent, root, name="other")
    assert {path.name for path in (root / "fruit").iterdir() if path.is_dir()} == {"mine", "other"}


def _no_frames(folder: Path, capture: Capture) -> None:
    write_transforms(folder, capture, frames=[])


def _unknown_lens(folder: Path, capture: Capture) -> None:
    write_transforms(folder, capture, camera_model="EQUIRECTANGULAR")


def _leads_out(folder: Path, capture: Capture) -> None:
    write_transforms(folder, capture, ply_file_path="../../points.ply")


def _looks_away(folder: Path, capture: Capture) -> None:
    away = make_capture()
    away.points = capture.points + 1e3
    write_transforms(folder, capture)
    vertices = np.array([tuple(p) for p in away.points], dtype=[(axis, "f8") for axis in "xyz"])
    PlyData([PlyElement.describe(vertices, "vertex")]).write(folder / "points.ply")


def _no_json(folder: Path, capture: Capture) -> None:
    (folder / "transforms.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_no_frames, "has 0 posed photos; at least 3 are needed"),
        (_unknown_lens, "camera_model 'EQUIRECTANGULAR' is no lens that a pinhole camera can describe"),
        (_leads_out, "leads out of"),
        (_looks_away, "only 0 of 400 points are the object's; give masks"),
        (_no_json, "no JSON"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, capture: Capture, photos: Path, spoil: Callable[[Path, Capture], None], message: str
) -> None:
    spoil(photos.parent, capture)
    with pytest.raises(UserError, match=message):
        run_import(photos.parent, tmp_path / "root")
    assert not (tmp_path / "root/fruit/sequence_annotations.jgz").exists()


def test_a_folder_without_a_reconstruction_is_told(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(UserError, match=r"neither transforms\.json nor .* is there, nor a COLMAP model"):
        run_import(tmp_path, tmp_path / "root", "--images", str(photos))
    with pytest.raises(UserError, match=r"^viewdiff import needs --name \(Name of the sequence\)$"):
        main.dispatch(["import", str(tmp_path), "--output", "x", "--category", "fruit"])
