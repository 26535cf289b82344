"""Takes the lens out of a photo: the picture that a pinhole camera would have taken, cut so that no pixel is empty.

Where each of its pixels lies in the photo depends on the camera and the photo's size alone, takes a second to compute
for six megapixels, and is kept for the next photo of that camera.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import pycolmap

from preprocessing.importing.photos.pictures import PictureError

CameraKey = tuple[str, int, int, tuple[float, ...]]  # model, width, height, parameters
LENSES_KEPT = 256
# Maps take 6 bytes a pixel; photos come sorted by name, hence mostly by camera.
MAPS_KEPT = 2
# Places along each side at which a lens is checked not to fold the picture.
_CHECKED = 48
_BANDS = 64  # rows whose rays are in memory at a time


@dataclass(frozen=True, eq=False)
class Lens:
    """From a photo of (height, width) `photo_size`, whatever size the source says, to the pinhole camera's picture."""

    photo_size: tuple[int, int]
    size: tuple[int, int]  # (height, width) of the pinhole camera's picture
    intrinsics: np.ndarray  # [3, 3] of it
    straighten: Callable[[np.ndarray], np.ndarray]  # a photo or mask, [H, W, 3] or [H, W] -> as the pinhole shows it
    move: Callable[[np.ndarray], np.ndarray]  # pixels [M, 2] of the source's camera -> of the pinhole's picture
    is_pinhole: bool  # whether there is nothing to straighten


def lens_of(camera: pycolmap.Camera, photo_size: tuple[int, int]) -> Lens:
    """The lens of a camera whose photo is `photo_size`, of the same aspect ratio as the camera's own size.

    Raises:
        PictureError: the lens folds the picture, so that no pinhole camera can show it.
    """
    return _lens((camera.model_name, camera.width, camera.height, tuple(camera.params)), photo_size)


@functools.lru_cache(maxsize=LENSES_KEPT)
def _lens(key: CameraKey, photo_size: tuple[int, int]) -> Lens:
    camera = _camera(key)
    scale = np.array([photo_size[1] / camera.width, photo_size[0] / camera.height])
    enlarge = np.diag([*scale, 1.0])
    # COLMAP calls a fisheye lens undistorted when its terms are 0.
    if camera.is_perspective_pinhole() and camera.is_undistorted():
        intrinsics = enlarge @ camera.calibration_matrix()
        return Lens(photo_size, photo_size, intrinsics, lambda picture: picture, lambda pixels: pixels * scale, True)
    name = f"{camera.model_name} {', '.join(f'{value:g}' for value in camera.params)}"
    try:
        pinhole = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), camera)
    except (ValueError, RuntimeError) as error:
        raise _folds(name) from error
    intrinsics = enlarge @ pinhole.calibration_matrix()
    size = (max(1, int(pinhole.height * scale[1])), max(1, int(pinhole.width * scale[0])))
    _check(camera, intrinsics, size, scale, name)

    def straighten(picture: np.ndarray) -> np.ndarray:
        maps = _maps(key, tuple(scale), size, tuple(intrinsics[(0, 1, 0, 1), (0, 1, 2, 2)]))
        return cv2.remap(picture, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def move(pixels: np.ndarray) -> np.ndarray:
        rays = camera.cam_from_img(np.asarray(pixels, dtype=np.float64))
        return rays @ intrinsics[:2, :2].T + intrinsics[:2, 2]

    return Lens(photo_size, size, intrinsics, straighten, move, False)


@functools.lru_cache(maxsize=MAPS_KEPT)
def _maps(
    key: CameraKey, scale: tuple[float, ...], size: tuple[int, int], pinhole: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel of the straight picture lies in the photo, in OpenCV's fixed-point form (1/32 pixel, which is
    how finely it interpolates anyway).
    """
    camera = _camera(key)
    places = np.empty((*size, 2), np.float32)
    columns = np.arange(size[1]) + 0.5
    for top in range(0, size[0], _BANDS):
        rows = np.arange(top, min(top + _BANDS, size[0])) + 0.5
        # OpenCV puts pixel centres at whole numbers.
        places[top : top + len(rows)] = _source(camera, columns, rows, pinhole, np.array(scale)) - 0.5
    return cv2.convertMaps(places, None, cv2.CV_16SC2)


def _camera(key: CameraKey) -> pycolmap.Camera:
    model, width, height, params = key
    return pycolmap.Camera(model=model, width=width, height=height, params=params)


def _source(
    camera: pycolmap.Camera, columns: np.ndarray, rows: np.ndarray, pinhole: tuple[float, ...], scale: np.ndarray
) -> np.ndarray:
    """[rows, columns, 2] where pixels of the straight picture lie in the photo."""
    u, v = np.meshgrid((columns - pinhole[2]) / pinhole[0], (rows - pinhole[3]) / pinhole[1])
    rays = np.stack([u, v, np.ones_like(u)], axis=-1).reshape(-1, 3)
    return camera.img_from_cam(rays).reshape(len(rows), len(columns), 2) * scale


def _check(
    camera: pycolmap.Camera, intrinsics: np.ndarray, size: tuple[int, int], scale: np.ndarray, name: str
) -> None:
    """The straight picture's neighbours must be neighbours in the photo, on the same sides of each other; all of it
    must lie in the photo.
    """
    if not (np.isfinite(intrinsics).all() and min(intrinsics[0, 0], intrinsics[1, 1]) > 0):
        raise _folds(name)
    columns, rows = (np.linspace(0.5, side - 0.5, _CHECKED) for side in (size[1], size[0]))
    places = _source(camera, columns, rows, tuple(intrinsics[(0, 1, 0, 1), (0, 1, 2, 2)]), scale)
    across, down = np.diff(places, axis=1)[:-1], np.diff(places, axis=0)[:, :-1]
    area = across[..., 0] * down[..., 1] - across[..., 1] * down[..., 0]
    limits = np.array([camera.width, camera.height]) * scale
    inside = ((places > -2) & (places < limits + 2)).all()
    if not (np.isfinite(places).all() and (area > 0).all() and inside):
        raise _folds(name)


def _folds(name: str) -> PictureError:
    return PictureError(
        f"taken through a lens that no straight picture can be made of ({name})",
        "correct the lens parameters, or undistort the photos in the program that made the cameras",
    )
