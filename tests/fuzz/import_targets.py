"""What other tools wrote, damaged: transforms.json, and COLMAP's models in text and binary."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from preprocessing.importing.colmap.model import MAX_MISFIT
from preprocessing.importing.object_points import object_points
from preprocessing.importing.photos.files import inside
from preprocessing.importing.reading import read_reconstruction
from preprocessing.importing.reconstructions import MINIMUM_PHOTOS, Reconstruction
from preprocessing.sequences.normalization import MINIMUM_POINTS
from tests.fuzz import mutations
from tests.fuzz.target import Target
from tests.support.foreign_captures import NAMES, OPENGL, points, tracked_model, write_photos, write_transforms

ROUNDING = 0.5  # pixels that a pose moves the points by when its rotation, written to three digits, is made rigid


def import_targets(folder: Path) -> list[Target]:
    """Small captures below `folder`, and the readers that `viewdiff import` has for them."""
    transforms = write_transforms(folder / "json", k1=0.05, k3=0.02, aabb_scale=16, camera_model="OPENCV")
    write_photos(folder / "images", NAMES)
    text, binary = folder / "text", folder / "binary"
    model = tracked_model()
    for path, write in ((text, model.write_text), (binary, model.write_binary)):
        path.mkdir()
        write(str(path))
    truth = {path: read_reconstruction(path, folder / "images", None) for path in (text, binary)}

    def reads(source: Path) -> Callable[[], None]:
        return lambda: _check_model(read_reconstruction(source, folder / "images", None), truth[source])

    def reads_transforms() -> None:
        capture = read_reconstruction(transforms, None, None)
        _check_capture(capture, transforms.parent)
        _check_transforms(capture, json.loads(transforms.read_bytes()))

    trees = (*mutations.BYTES, *[mutations.wrong_json] * 3)
    lines = (*mutations.BYTES, *[mutations.wrong_field, mutations.wrong_lines] * 2)
    targets = [Target("transforms.json", transforms, trees, reads_transforms, must_refuse=False)]
    for name in ("cameras", "images", "points3D"):
        for path, end, ways in ((text, "txt", lines), (binary, "bin", mutations.BYTES)):
            targets.append(Target(f"COLMAP {name}.{end}", path / f"{name}.{end}", ways, reads(path), must_refuse=False))
    return targets


def _check_capture(capture: Reconstruction, folder: Path) -> None:
    """What is read is well-formed, whatever the file says, and so is what is made of it."""
    assert len(capture.photos) >= MINIMUM_PHOTOS
    assert capture.points.shape == (len(capture.points), 3)
    assert np.isfinite(capture.points).all()
    for photo in capture.photos:
        rotation = photo.world_to_camera[:3, :3]
        assert np.isfinite(photo.world_to_camera).all()
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(rotation) > 0
        assert np.isfinite(photo.camera.params).all()
        assert min(photo.camera.focal_length_x, photo.camera.focal_length_y) > 0
        assert photo.path.is_file()
        assert photo.path == inside(folder, str(photo.path.relative_to(folder)), folder)
    found = object_points(capture, lambda photo: None)
    assert len(found.points) >= MINIMUM_POINTS
    assert np.isfinite(found.points).all()


def _check_transforms(capture: Reconstruction, content: dict[str, Any]) -> None:
    """Nothing says where the points were seen, so that a wrong number cannot be noticed: but every number must count,
    each camera be that of a literal reading of the file.
    """
    if capture.notes or capture.left_out:
        return
    frames = {frame["file_path"]: frame for frame in content["frames"]}
    for photo in capture.photos:
        found = photo.project(points())[0] * (photo.camera.width, photo.camera.height)
        away = found - _literal_pixels(content | frames[photo.name])
        assert np.median(np.linalg.norm(away, axis=1)) <= ROUNDING, photo.name


def _literal_pixels(frame: dict[str, Any]) -> np.ndarray:
    """[N, 2] where a frame, with the file's fields, sees the points. What is empty says nothing."""
    said = {key: value for key, value in frame.items() if value not in (None, "", [], {})}
    width, height = said["w"], said["h"]
    focal = [said["fl_x"], said.get("fl_y", said["fl_x"])]
    terms = [said.get(name, 0) for name in ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")]
    params = [*focal, said.get("cx", width / 2), said.get("cy", height / 2), *terms]
    camera = pycolmap.Camera(model="FULL_OPENCV", width=int(width), height=int(height), params=params)
    pose = np.linalg.inv(np.array(said["transform_matrix"]) @ OPENGL)
    return np.nan_to_num(camera.img_from_cam(points() @ pose[:3, :3].T + pose[:3, 3]), nan=-1.0)


def _check_model(capture: Reconstruction, truth: Reconstruction) -> None:
    """A camera that puts points elsewhere than the undamaged model's does is noticed: by the keypoints, or where its
    size is another, once the picture is opened.
    """
    folder = truth.photos[0].path.parent
    _check_capture(capture, folder)
    if capture.notes or capture.left_out:
        return
    assert len(capture.photos) == len(truth.photos)
    for photo, true in zip(capture.photos, truth.photos, strict=True):
        assert photo.path == true.path
        size = (true.camera.width, true.camera.height)
        if (photo.camera.width, photo.camera.height) == size:
            away = (photo.project(points())[0] - true.project(points())[0]) * size
            assert np.median(np.linalg.norm(away, axis=1)) <= 2 * MAX_MISFIT
