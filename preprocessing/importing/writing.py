"""Writes a reconstruction from elsewhere down as one sequence of a CO3Dv2 dataset, from which everything else goes on.

Photos without distortion are copied; others are undistorted, so that a pinhole camera describes them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
from plyfile import PlyData, PlyElement

from infra.errors import UserError
from infra.log import Progress
from infra.storage import atomic_write
from preprocessing.captures import Viewpoint
from preprocessing.co3d import FRAMES_NAME, SEQUENCES_NAME, encode_jgz, read_jgz
from preprocessing.images import DefectError, encode_image, encode_mask, read_image, read_mask
from preprocessing.importing.object_points import ObjectPoints, object_points
from preprocessing.importing.reconstructions import Photo, Reconstruction
from preprocessing.samples import SAFE_NAME

FORMAT = "ndc_isotropic"


def import_capture(
    capture: Reconstruction, root: Path, *, category: str, name: str, radius: float | None = None
) -> ObjectPoints:
    """Add the capture to the dataset at `root`, which need not exist; returns the object's points, which lie within
    `radius` of where the cameras look. The sequence's annotation is written last: what was interrupted before is
    written anew.

    Raises:
        UserError: a name with other characters than letters, digits, - and _; a sequence of that name exists; a photo
        cannot be read; or as `object_points`.
    """
    for what, text in (("category", category), ("name", name)):
        if not SAFE_NAME.fullmatch(text):
            raise UserError(f"{what} {text!r}: use letters, digits, - and _, at most 80")
    frames, sequences = (_entries(root / category / file) for file in (FRAMES_NAME, SEQUENCES_NAME))
    if any(entry.get("sequence_name") == name for entry in sequences):
        raise UserError(f"{root / category}: has a sequence {name!r} already; choose another name")
    found = object_points(capture, _mask_of, radius=radius)
    points = found.points
    folder = root / category / name
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    own = _write_photos(capture.photos, root, f"{category}/{name}")
    vertices = np.array([tuple(point) for point in points], dtype=[(axis, "f4") for axis in "xyz"])
    PlyData([PlyElement.describe(vertices, "vertex")]).write(folder / "pointcloud.ply")
    sequence = {
        "sequence_name": name,
        "category": category,
        "video": None,
        "point_cloud": {"path": f"{category}/{name}/pointcloud.ply", "quality_score": None, "n_points": len(points)},
        "viewpoint_quality_score": None,
    }
    others = [entry for entry in frames if entry.get("sequence_name") != name]  # without those of an interrupted import
    _write_entries(root / category / FRAMES_NAME, [*others, *own])
    _write_entries(root / category / SEQUENCES_NAME, [*sequences, sequence])
    return found


def _mask_of(photo: Photo) -> np.ndarray | None:
    size = (photo.camera.height, photo.camera.width)
    return None if photo.mask_path is None else _read(read_mask, photo.mask_path, size)


def _write_photos(photos: tuple[Photo, ...], root: Path, key: str) -> list[dict[str, Any]]:
    """Write pictures and masks; returns their entries for frame_annotations."""
    entries = []
    with Progress("import", total=len(photos), unit="photos") as progress:
        for number, photo in enumerate(photos):
            stem = f"frame{number + 1:06d}"
            size = (photo.camera.height, photo.camera.width)
            undistorted = photo.camera if photo.camera.is_undistorted() else _pinhole(photo.camera)
            image = f"{key}/images/{stem}{photo.path.suffix.lower() if undistorted is photo.camera else '.jpg'}"
            picture = _read(read_image, photo.path, size)
            mask = None
            if photo.mask_path is not None:
                mask = f"{key}/masks/{stem}.png"
                foreground = _read(read_mask, photo.mask_path, size)
                (root / mask).write_bytes(encode_mask(_undistort(foreground, photo.camera, undistorted)))
            if undistorted is photo.camera:
                shutil.copyfile(photo.path, root / image)
            else:
                (root / image).write_bytes(encode_image(_undistort(picture, photo.camera, undistorted)))
            entries.append(
                {
                    "sequence_name": key.split("/")[1],
                    "frame_number": number,
                    "frame_timestamp": float(number),
                    "image": {"path": image, "size": [undistorted.height, undistorted.width]},
                    "depth": None,
                    "mask": None if mask is None else {"path": mask, "mass": None},
                    "viewpoint": _viewpoint(photo.world_to_camera, undistorted).entry(),
                    "meta": {"source": photo.path.name},
                }
            )
            progress.advance()
    return entries


def _pinhole(camera: pycolmap.Camera) -> pycolmap.Camera:
    """The camera of the undistorted photo, cut so that it has no empty pixels."""
    return pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), camera)


def _undistort(picture: np.ndarray, camera: pycolmap.Camera, pinhole: pycolmap.Camera) -> np.ndarray:
    """The picture [H, W] or [H, W, 3] of `camera` as `pinhole` would have taken it."""
    if pinhole is camera:
        return picture
    v, u = np.mgrid[: pinhole.height, : pinhole.width] + 0.5
    rays = np.stack([u, v, np.ones_like(u)], -1).reshape(-1, 3) @ np.linalg.inv(pinhole.calibration_matrix()).T
    # OpenCV puts pixel centres at whole numbers.
    source = (camera.img_from_cam(rays) - 0.5).astype(np.float32).reshape(pinhole.height, pinhole.width, 2)
    return cv2.remap(picture, source, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _viewpoint(pose: np.ndarray, camera: pycolmap.Camera) -> Viewpoint:
    return Viewpoint.from_opencv(pose, camera.calibration_matrix(), (camera.height, camera.width), FORMAT)


def _read(read: Any, path: Path, size: tuple[int, int]) -> np.ndarray:
    try:
        return read(path, size)
    except DefectError as reason:
        raise UserError(f"{path}: {reason}; it must be a JPEG or PNG of {size[1]} × {size[0]} pixels") from reason


def _entries(path: Path) -> list[dict[str, Any]]:
    return read_jgz(path) if path.is_file() else []


def _write_entries(path: Path, entries: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, encode_jgz(entries))
