"""Readers of reconstructions from elsewhere: COLMAP's models, text or binary, and nerfstudio's transforms.json.

Both become posed photos and points in the conventions of `model.cameras`, so that `writing.py` can write them
down as CO3Dv2 does. COLMAP's cameras are ours: OpenCV axes, pixel centres at half-integers. nerfstudio's
`transform_matrix` takes points of the camera to the world, in OpenGL's axes: x right, y up, z backward.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pycolmap

from infra.errors import UserError
from preprocessing.images import DefectError, picture_size
from preprocessing.normalize import RejectionError, load_points

TRANSFORMS_NAME = "transforms.json"
# nerfstudio's distortion parameters in the order of COLMAP's camera models.
NERFSTUDIO_MODELS = {
    "PINHOLE": (),
    "SIMPLE_PINHOLE": (),
    "OPENCV": ("k1", "k2", "p1", "p2"),
    "OPENCV_FISHEYE": ("k1", "k2", "k3", "k4"),
}
_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Photo:
    """One posed photo, as its source describes it: neither the picture nor the mask was opened yet."""

    name: str  # as the source calls it, such as images/one.jpg
    path: Path
    mask_path: Path | None
    world_to_camera: np.ndarray  # [4, 4]
    camera: pycolmap.Camera  # intrinsics and lens at the source's size; pixel centres at half-integers
    # Numbers [M] of points that were found in this photo, and where [M, 2] in the camera's pixels.
    observations: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Photos by name, and points of the whole scene, in any world."""

    photos: tuple[Photo, ...]
    points: np.ndarray  # [N, 3]
    left_out: tuple[tuple[str, str], ...] = ()  # photos that the source names and that cannot be used, with the reason
    notes: tuple[str, ...] = ()  # sentences for the person: what was changed, and which of several things was taken


def read_reconstruction(source: Path, images: Path | None, masks: Path | None) -> Reconstruction:
    """What is in `source`: a folder with a COLMAP model (then `images` is the folder of its photos), or one with
    transforms.json, or that file. `masks` is a folder of masks named as their photos, with the ending .png.

    Raises:
        UserError: nothing known is there, it is damaged, a photo is missing, a camera model is not supported.
    """
    transforms = source if source.suffix == ".json" else source / TRANSFORMS_NAME
    if transforms.is_file():
        return _read_nerfstudio(transforms, masks)
    if images is None:
        raise UserError(
            f"{source}: no {TRANSFORMS_NAME}; for a COLMAP model name the folder of its photos with --images"
        )
    try:
        model = pycolmap.Reconstruction(str(source))
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"{source}: neither {TRANSFORMS_NAME} nor a COLMAP model ({error}); name the folder that holds cameras.bin "
            "or cameras.txt"
        ) from error
    photos = []
    for image in sorted(model.images.values(), key=lambda image: image.name):
        if image.has_pose:
            path = _inside(images, image.name, source)
            pose = np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]])
            photos.append(Photo(image.name, path, _mask(path, images, masks), pose, model.cameras[image.camera_id]))
    points = np.array([model.points3D[number].xyz for number in sorted(model.points3D)]).reshape(-1, 3)
    return Reconstruction(_checked(photos, source), points)


def _read_nerfstudio(path: Path, masks: Path | None) -> Reconstruction:
    folder = path.parent
    try:
        content = json.loads(path.read_bytes())
        photos = [_nerfstudio_photo(folder, content, frame, masks, path) for frame in content["frames"]]
        cloud = content.get("ply_file_path")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, DefectError) as error:
        raise UserError(f"{path}: not the transforms of posed photos ({type(error).__name__}: {error})") from error
    if not isinstance(cloud, str):
        raise UserError(f"{path}: has no ply_file_path; export the points too, the object's size is taken from them")
    try:
        points = load_points(_inside(folder, cloud, path))
    except RejectionError as reason:
        raise UserError(f"{path}: {cloud}: {reason}") from reason
    photos.sort(key=lambda photo: photo.path)
    return Reconstruction(_checked(photos, path), points)


def _nerfstudio_photo(
    folder: Path, content: Mapping[str, Any], frame: Mapping[str, Any], masks: Path | None, path: Path
) -> Photo:
    values = {**content, **frame}  # a frame's own intrinsics come before those of all
    image = _inside(folder, frame["file_path"], path)
    height, width = (values["h"], values["w"]) if "w" in values else picture_size(image)
    focal_x = values["fl_x"] if "fl_x" in values else width / 2 / math.tan(values["camera_angle_x"] / 2)
    focal = (focal_x, values.get("fl_y", focal_x))
    center = (values.get("cx", width / 2), values.get("cy", height / 2))
    name = values.get("camera_model", "OPENCV" if "k1" in values else "PINHOLE")
    if name not in NERFSTUDIO_MODELS:
        raise ValueError(f"camera_model {name!r}, known are {', '.join(NERFSTUDIO_MODELS)}")
    distortion = [values.get(parameter, 0.0) for parameter in NERFSTUDIO_MODELS[name]]
    camera = pycolmap.Camera(
        model="PINHOLE" if not distortion else name,
        width=int(width),
        height=int(height),
        params=[float(value) for value in (*focal, *center, *distortion)],
    )
    camera_to_world = np.array(frame["transform_matrix"], dtype=np.float64)
    if camera_to_world.shape != (4, 4) or not np.isfinite(camera_to_world).all():
        raise ValueError(f"transform_matrix of {frame['file_path']} is no 4 × 4 matrix of numbers")
    mask = _inside(folder, frame["mask_path"], path) if "mask_path" in frame else _mask(image, folder, masks)
    return Photo(frame["file_path"], image, mask, np.linalg.inv(camera_to_world @ _OPENGL), camera)


def _mask(path: Path, images: Path, masks: Path | None) -> Path | None:
    return None if masks is None else masks / path.relative_to(images).with_suffix(".png")


def _inside(folder: Path, name: str, source: Path) -> Path:
    """A path below `folder`, checked not to lead out of it."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\0" in name:
        raise UserError(f"{source}: the path {name!r} leads out of {folder}; correct it")
    return folder / relative


def _checked(photos: list[Photo], source: Path) -> tuple[Photo, ...]:
    if not photos:
        raise UserError(f"{source}: holds no posed photo")
    missing = [photo.path for photo in photos if not photo.path.is_file()]
    if missing:
        raise UserError(f"{source}: {len(missing)} of {len(photos)} photos are missing, as {missing[0]}")
    return tuple(photos)
