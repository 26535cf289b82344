"""COLMAP's models, text and binary: where one is below a folder, and what its rows mean. Its cameras are ours: poses
take the world to the camera, axes are OpenCV's, pixel centres lie at half-integers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap

from infra.errors import UserError
from infra.log import format_count
from preprocessing.importing.colmap import binary, text
from preprocessing.importing.colmap.rows import QUATERNION_TOLERANCE, CameraRow, ImageRow
from preprocessing.importing.photos.files import find_in_named_folder, find_masks, photo_folder, with_files
from preprocessing.importing.reconstructions import (
    MAX_SIDE,
    MAX_VALUE,
    Photo,
    Reconstruction,
    focal_doubt,
    listed,
    refuse_value,
)

CONVENTION = (
    "a COLMAP model's poses must take points of the world to the camera, with OpenCV's axes: x right, y down, z forward"
)
# Where tools put the folders of models, below the folder that a person names.
MODEL_FOLDERS = (".", "sparse", "colmap/sparse", "dense/sparse", "distorted/sparse")
# COLMAP itself keeps no observation that is farther off, pixels.
MAX_MISFIT = 4.0


def find_models(source: Path) -> list[Path]:
    """Folders of COLMAP models at `source` or where tools put them below it: one folder, or the numbered ones of one
    folder that the mapper wrote several into.
    """
    for name in MODEL_FOLDERS:
        folder = source / name
        if _is_model(folder):
            return [folder]
        if models := _numbered(folder):
            return models
    return []


def read_colmap(source: Path, models: list[Path], images: Path | None, masks: Path | None) -> Reconstruction:
    """The model of most photos, with its photos in the folder `images`.

    Raises:
        UserError: a file is damaged (the message names the file and the line or entry); a lens is none that a pinhole
        camera can stand for; photos or masks are missing.
    """
    if images is None:
        raise UserError(f"{models[0]}: is a COLMAP model; name the folder of its photos with --images")
    folder, note = photo_folder(images)
    notes = [note] if note else []
    rows = {model: list(_images(model)) for model in models}
    model = max(models, key=lambda model: len(rows[model]))
    if len(models) > 1:
        counts = ", ".join(f"{other.name} with {len(rows[other])} photos" for other in models)
        notes.append(f"{model.parent} holds several models ({counts}): {model.name} is taken")
    elif inner := _numbered(model):
        notes.append(f"{model} is taken; {listed([str(path) for path in inner])}, below it, may be named instead")
    numbers, points = _points(model)
    photos, num_lost = _photos(model, rows[model], folder, {int(n): place for place, n in enumerate(numbers)})
    notes += _remarks(model, rows[model], photos, points)
    if num_lost and len(points):
        notes.append(f"{model}: names points that it does not have at {format_count(num_lost, 'keypoint')}")
    there, left_out = with_files(photos, model)
    if masks is not None:
        found = find_masks(masks, [(photo.name, photo.path) for photo in there], model)
        there = [replace(photo, mask_path=found[photo.name]) for photo in there]
    return Reconstruction(model, tuple(there), points, CONVENTION, left_out, tuple(notes))


def _numbered(folder: Path) -> list[Path]:
    """The folders of models that the mapper wrote into `folder`, in order."""
    numbered = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return sorted((path for path in numbered if _is_model(path)), key=lambda path: int(path.name))


def _is_model(folder: Path) -> bool:
    return any(all((folder / f"{name}.{end}").is_file() for name in ("cameras", "images")) for end in ("bin", "txt"))


def _is_binary(model: Path) -> bool:
    """Whether the binary files are read: where both kinds are there, COLMAP does so too."""
    return all((model / f"{name}.bin").is_file() for name in ("cameras", "images"))


def _file(model: Path, name: str) -> Path:
    return model / f"{name}.{'bin' if _is_binary(model) else 'txt'}"


def _refuse_repeated(path: Path, what: str, numbers: Sequence[int]) -> None:
    """Raise UserError if a number stands for two things: nobody knows which of them others mean by it."""
    for number, times in Counter(numbers).items():
        if times > 1:
            refuse_value(path, f"{what} {number}", f"is there {times} times, but a number stands for one {what}")


def _images(model: Path) -> list[ImageRow]:
    return list((binary if _is_binary(model) else text).read_images(_file(model, "images")))


def _points(model: Path) -> tuple[np.ndarray, np.ndarray]:
    """Numbers [N] and positions [N, 3]; none where the model has no such file, as COLMAP allows."""
    path = _file(model, "points3D")
    read = binary.read_points if _is_binary(model) else text.read_points
    rows = list(read(path)) if path.is_file() else []
    numbers = [number for number, _ in rows]
    positions = np.array([position for _, position in rows], dtype=np.float64).reshape(-1, 3)
    _refuse_repeated(path, "point", numbers)
    for place in np.flatnonzero(~(np.abs(positions) < MAX_VALUE).all(axis=1)):
        refuse_value(path, f"point {numbers[place]}", f"its position is {positions[place].tolist()}")
    return np.array(numbers, dtype=np.uint64), positions


def _photos(model: Path, rows: list[ImageRow], folder: Path, order: dict[int, int]) -> tuple[list[Photo], int]:
    """`order` gives the place of each point's number among the points; the count is that of keypoints of others."""
    path = _file(model, "images")
    cameras = _cameras(model)
    _refuse_repeated(path, "photo", [row.number for row in rows])
    photos, num_lost = [], 0
    for row in rows:
        if row.camera not in cameras:
            refuse_value(path, row.place, f"{row.name} is of camera {row.camera}, which cameras does not have")
        places = np.array([order.get(number, -1) for number in row.points.tolist()], dtype=np.int64)
        known = places >= 0
        num_lost += int((~known).sum())
        photo = find_in_named_folder(folder, row.name, path)
        pose, found = _pose(row, path), (places[known], row.pixels[known])
        photos.append(Photo(row.name, photo, None, pose, cameras[row.camera], found))
    return photos, num_lost


def _remarks(model: Path, rows: list[ImageRow], photos: list[Photo], points: np.ndarray) -> list[str]:
    """What does not fit together, though each line can be read."""
    remarks = []
    if not all(row.has_second_line for row in rows):
        remarks.append(f"{model / 'images.txt'}: the second line, of keypoints, is missing: read as photos without any")
    for name, count in (("images", len(rows)), ("points3D", len(points))):
        path = model / f"{name}.txt"
        said = text.said_count(path) if path.is_file() and not _is_binary(model) else None
        if said not in (None, count):
            remarks.append(f"{path}: its head says that it has {said} entries, but it holds {count}")
    errors = {photo.name: photo.reprojection_errors(points) for photo in photos}
    misfits = [name for name, values in errors.items() if len(values) and not np.median(values) <= MAX_MISFIT]
    if misfits:
        remarks.append(
            f"{model}: the poses of {len(misfits)} of {len(photos)} photos put their points more than {MAX_MISFIT:g} "
            f"pixels away from where they were found: {listed(misfits)}"
        )
    return remarks


def _pose(row: ImageRow, path: Path) -> np.ndarray:
    """[4, 4] of a row's unit quaternion and translation."""
    sane = (np.abs(row.pose) < MAX_VALUE).all()
    length = float(np.linalg.norm(row.pose[:4])) if sane else 0.0
    if abs(length - 1) > QUATERNION_TOLERANCE:
        what = f"{row.name}: the pose {row.pose.tolist()} must be a quaternion of length 1 and a translation"
        refuse_value(path, row.place, what)
    w, x, y, z = row.pose[:4] / length
    pose = np.eye(4)
    pose[:3, :3] = pycolmap.Rotation3d(np.array([x, y, z, w])).matrix()
    pose[:3, 3] = row.pose[4:]
    return pose


def _cameras(model: Path) -> dict[int, pycolmap.Camera]:
    path = _file(model, "cameras")
    rows = list((binary if _is_binary(model) else text).read_cameras(path))
    _refuse_repeated(path, "camera", [row.number for row in rows])
    cameras = {row.number: _camera(row, path) for row in rows}
    if not cameras:
        raise UserError(f"{path}: holds no camera; export the model again, with its cameras")
    return cameras


def _camera(row: CameraRow, path: Path) -> pycolmap.Camera:
    sizes = binary.NUM_PARAMETERS
    if row.model not in sizes:
        refuse_value(path, row.place, f"camera model {row.model!r} is unknown, known are {', '.join(sizes)}")
    if len(row.params) != sizes[row.model]:
        refuse_value(
            path, row.place, f"{row.model} has {sizes[row.model]} parameters, but {len(row.params)} are written there"
        )
    if not (1 <= row.width <= MAX_SIDE and 1 <= row.height <= MAX_SIDE):
        refuse_value(path, row.place, f"pictures of {row.width} × {row.height} pixels")
    camera = pycolmap.Camera(model=row.model, width=row.width, height=row.height, params=row.params)
    if not camera.is_perspective():
        raise UserError(
            f"{path}: {row.place}: camera model {row.model} is no lens that a pinhole camera can describe; cut the "
            "panoramas into perspective views first"
        )
    if not (np.abs(row.params) < MAX_VALUE).all():
        refuse_value(path, row.place, f"{row.model} with parameters {row.params}")
    for index in camera.focal_length_idxs():
        if doubt := focal_doubt(row.params[index], row.width, row.height):
            refuse_value(path, row.place, f"{row.model} with focal length {doubt}")
    return camera
