"""The camera that the fields of a transforms.json describe. Nothing that could move a pixel is dropped: a field is
used, or refused by its name and value, or known not to matter (IRRELEVANT), or unknown, which the person is told.

Sources of the fields' meaning: nerfstudio's data conventions and its `nerfstudio_dataparser.py`, instant-ngp's
`nerf_loader.cu`, and Blender's scripts for NeRF. docs/own-captures.md has the table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pycolmap

from preprocessing.importing.reconstructions import MAX_SIDE, focal_doubt
from preprocessing.importing.transforms.json_fields import FieldError, Fields, matrix, number, said

# nerfstudio applies all terms to each of these names; other tools write the terms that the name stands for.
PERSPECTIVE = (
    "PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV",
)  # fmt: skip
FISHEYE = ("OPENCV_FISHEYE", "FISHEYE", "SIMPLE_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE")
# Where a 3 × 3 matrix of intrinsics is written instead of fl_x and so on, or beside them.
MATRICES = ("intrinsic_matrix", "intrinsics", "camera_intrinsics", "intrinsic", "K")
FOCAL_FIELDS = ("fl_x", "fl_y", "camera_angle_x", "camera_angle_y", "x_fov", "y_fov")
_TERM = re.compile(r"[kps]\d*|skew|sk_x|sk_y|omega|xi")
CAMERA_FIELDS = frozenset({
    "w", "h", "cx", "cy", "camera_model", "is_fisheye", *FOCAL_FIELDS, *MATRICES,
})  # fmt: skip
# Refused unless they say nothing (null, false, 0, zeros, empty): each would move pixels, or the camera within a photo.
REFUSED = {
    "rolling_shutter": "photos whose rows were taken from different places; export the capture without it",
    "latlong": "photos that are panoramas; cut them into perspective views first",
    "equirectangular": "photos that are panoramas; cut them into perspective views first",
    "orthographic": "photos without a perspective, which no pinhole camera takes; render them with a perspective",
    "from_na": "other axes, those of OpenCV; negate the second and the third column of every transform_matrix, and "
    "remove from_na",
    "k": "a lens whose terms have no names; write them as k1, k2, k3, p1, p2, or undistort first",
    "distortion_params": "a lens whose terms have no names; write them as k1, k2, k3, p1, p2, or undistort first",
    "transform_matrix_start": "a camera that moved while it took the photo; keep transform_matrix alone",
    "transform_matrix_end": "a camera that moved while it took the photo; keep transform_matrix alone",
}
# instant-ngp asks only whether this field is there. Refused whatever it holds, if not null.
MARKS = {
    "normal_mts_args": "it marks other axes, those of Mitsuba; negate the first and the third column of every "
    "transform_matrix, and remove normal_mts_args",
}
# Boxes and scales of the tools' own worlds, which the matrices in the file are not in; lists for training; pictures of
# other things; names and scores. applied_transform: matrices and points of the file have it already.
IRRELEVANT = frozenset({
    "aabb", "aabb_scale", "render_aabb", "render_aabb_to_local", "scale", "offset", "up", "avglen", "totw", "totp",
    "sharpness", "sharpness_discard_threshold", "sharpen", "n_extra_learnable_dims", "importance_sampling",
    "white_transparent", "black_transparent", "fix_premult", "integer_depth_scale", "enable_depth_loading",
    "enable_ray_loading", "depth_path", "envmap", "driver_parameters", "applied_transform", "applied_scale",
    "orientation_override", "auto_scale_poses_override", "train_filenames", "val_filenames", "test_filenames",
    "depth_file_path", "depth_unit_scale_factor", "normal_path", "normal_file_path", "colmap_im_id",
    "fisheye_crop_radius", "rotation", "timestamp", "camera_label", "image_id", "camera_id", "frame_id", "file_name",
    "name", "id", "blur_score", "motion_score", "poses_from", "confidence_score", "aabb_range", "sphere_center",
    "sphere_radius", "camera_extent", "schema_version",
})  # fmt: skip
# What two ways of writing the same intrinsics may differ by, pixels.
AGREEMENT = 1.0


def camera_of(values: Fields, picture_size: Callable[[], tuple[int, int]]) -> pycolmap.Camera:
    """The camera of a frame's fields, those of the whole file among them. `picture_size` gives (height, width) of the
    photo, for files without w and h.

    Raises:
        FieldError: a field is missing, contradicts another, or describes a lens that is not supported.
    """
    for key, value in values.items():
        if what := _refusal(key, value):
            raise FieldError(f"{key} is {str(value)[:40]}: {what}")
    width, height = _size(values, picture_size)
    name, terms = _lens(values)
    intrinsics = _intrinsics(values, width, height)
    for key, focal in zip(("fl_x", "fl_y"), intrinsics[:2], strict=True):
        if doubt := focal_doubt(focal, width, height):
            raise FieldError(f"{key} is {doubt}")
    for key, center, side in zip(("cx", "cy"), intrinsics[2:], (width, height), strict=True):
        if 0 < center <= 1 < side / 4:
            raise FieldError(f"{key} is {center:g} for pictures of {width} × {height}; it must be in pixels")
        if not 0 < center < side:
            raise FieldError(f"{key} is {center:g}, outside of pictures of {width} × {height}; it must be in pixels")
    return pycolmap.Camera(model=name, width=width, height=height, params=[*intrinsics, *terms])


def with_own_fields(file: Fields, frame: Fields) -> Fields:
    """The fields of a frame: its own, and the file's where it has none; null counts as missing.

    A focal length of its own, in whatever form, takes the place of all of the file's: they may be of another form. A
    whole matrix of its own takes the place of the file's centre too.
    """
    own, replaced = said(frame), set[str]()
    if own.keys() & set(FOCAL_FIELDS):
        replaced.update(FOCAL_FIELDS)
    if own.keys() & set(MATRICES):
        replaced.update((*FOCAL_FIELDS, *MATRICES, "cx", "cy"))
    return {key: value for key, value in said(file).items() if key not in replaced} | own


def overruled(file: Fields, frame: Fields) -> set[str]:
    """The file's fields of a camera that the frame's own take the place of and that say something else."""
    taken = with_own_fields(file, frame)
    return {
        key
        for key, value in said(file).items()
        if (key in CAMERA_FIELDS or _TERM.fullmatch(key)) and taken.get(key) != value
    }


def unknown_fields(keys: Iterable[str]) -> set[str]:
    """Fields that this reader does not know; whether they matter, a person must say."""
    known = CAMERA_FIELDS | IRRELEVANT | REFUSED.keys() | MARKS.keys()
    return {key for key in keys if key not in known and not _TERM.fullmatch(key) and not _is_ftheta(key)}


def _refusal(key: str, value: Any) -> str | None:
    """What a field means that no pinhole camera has, and what to do."""
    if key in MARKS and value is not None:
        return MARKS[key]
    if _says_nothing(value):
        return None
    return "an f-theta lens; undistort the photos first" if _is_ftheta(key) else REFUSED.get(key)


def _is_ftheta(key: str) -> bool:
    return key.startswith("ftheta_")


def _says_nothing(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return all(_says_nothing(item) for item in value)
    return value in (None, False, 0, "")


def _size(values: Fields, picture_size: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    width, height = number(values, "w"), number(values, "h")
    if width is None and height is None:
        height, width = picture_size()
    if width is None or height is None:
        raise FieldError("of w and h only one is there; write both, in pixels")
    if not all(side == int(side) and 1 <= side <= MAX_SIDE for side in (width, height)):
        raise FieldError(f"w and h are {width:g} and {height:g}; they must be whole numbers of pixels")
    return int(width), int(height)


def _intrinsics(values: Fields, width: int, height: int) -> list[float]:
    """Focal lengths and centre in pixels."""
    center = [
        side / 2 if value is None else value
        for side, value in ((width, number(values, "cx")), (height, number(values, "cy")))
    ]
    along_x, along_y = _focal(values, "x", width), _focal(values, "y", height)
    focal = along_y if along_x is None else along_x  # both are there, or the pixels are square
    written = _written_matrix(values)
    if focal is None:
        if written is None:
            fields = ", ".join(sorted(values))
            raise FieldError(f"no focal length: fl_x, camera_angle_x and x_fov are missing; its fields are {fields}")
        return written[1]
    intrinsics = [focal, focal if along_y is None else along_y, *center]
    if written is not None and np.abs(np.subtract(intrinsics, written[1])).max() > AGREEMENT:
        raise FieldError(f"{written[0]} has {written[1]}, but fl_x, fl_y, cx and cy say {intrinsics}; keep one of both")
    return intrinsics


def _focal(values: Fields, axis: str, side: int) -> float | None:
    """Focal length in pixels along an axis; fl_ comes before camera_angle_, radians, and _fov, degrees."""
    focal = number(values, f"fl_{axis}")
    if focal is not None:
        return focal
    for key, unit, name in ((f"camera_angle_{axis}", 1.0, "radians"), (f"{axis}_fov", math.pi / 180, "degrees")):
        angle = number(values, key)
        if angle is not None:
            if not 0 < angle * unit < math.pi:
                most = f"{math.pi / unit:.4g} {name}"
                raise FieldError(f"{key} is {angle:g}; a field of view must lie between 0 and {most}")
            return side / 2 / math.tan(angle * unit / 2)
    return None


def _written_matrix(values: Fields) -> tuple[str, list[float]] | None:
    """Focal lengths and centre of a field that holds a whole matrix, and its name."""
    for key in MATRICES:
        if values.get(key) is not None:
            found = matrix(values[key], 3, 3)
            if found is None or found[0, 1] or not (found[0, 0] > 0 and found[1, 1] > 0):
                raise FieldError(
                    f"{key} is no 3 × 3 matrix of focal lengths and centre; write fl_x, fl_y, cx and cy instead"
                )
            return key, [float(found[place]) for place in ((0, 0), (1, 1), (0, 2), (1, 2))]
    return None


def _lens(values: Fields) -> tuple[str, list[float]]:
    """COLMAP's camera model and its terms: the smallest model that has all terms that are not 0."""
    name, said = values.get("camera_model"), values.get("is_fisheye")
    if name is not None and name not in PERSPECTIVE + FISHEYE:
        raise FieldError(
            f"camera_model {str(name)[:40]!r} is no lens that a pinhole camera can describe; known are "
            f"{', '.join(PERSPECTIVE + FISHEYE)}; cut panoramas into perspective views first"
        )
    if said not in (None, False, True, 0, 1) or (said and name in PERSPECTIVE):
        raise FieldError(f"is_fisheye is {said!r} and camera_model {name!r}; correct one of both")
    terms = {
        key: number(values, key) or 0.0
        for key, value in values.items()
        if _TERM.fullmatch(key) and not _says_nothing(value)
    }
    if name in FISHEYE or said:
        used, model = ["k1", "k2", "k3", "k4"], "OPENCV_FISHEYE"  # even with all terms 0 it is not a pinhole camera
    elif name == "FULL_OPENCV" or terms.get("k3"):
        used, model = ["k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"], "FULL_OPENCV"
    else:
        used, model = ["k1", "k2", "p1", "p2"], "OPENCV"
    rational = model == "FULL_OPENCV" and name != "FULL_OPENCV"  # only a name says that k4 is OpenCV's denominator
    for key, value in terms.items():
        if value and (key not in used or (rational and key in ("k4", "k5", "k6"))):
            raise FieldError(
                f"{key} is {value:g}, a lens term that {name or 'a lens without a camera_model'} has no place for; "
                "undistort the photos first, or name the camera_model that has it"
            )
    if model == "OPENCV" and not any(terms.get(key) for key in used):
        return "PINHOLE", []
    return model, [terms.get(key, 0.0) for key in used]
