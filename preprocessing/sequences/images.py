"""Pictures: decoding with every defect named, crop and resize of image, mask and camera together, intensity,
encoding.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from infra.storage.files import StoragePath
from model.cameras import Cameras

JPEG_QUALITY = 95
# Far above any capture. Pillow warns of larger ones, and refuses twice as many before it allocates anything.
MAX_PIXELS = Image.MAX_IMAGE_PIXELS = 100_000_000
# Hidden target frames are published as black pictures. A mean of less than 2.5 of 255 is no photo of anything.
BLACK_MEAN = 0.01
# The middle of the mask is that of its central 96 %, so that single stray pixels do not move the crop.
MASK_TAIL_FRACTION = 0.02
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class DefectError(Exception):
    """A picture that cannot be used; the message is the reason as it is counted in the table of dropped frames."""


@dataclass(frozen=True, eq=False)
class View:
    """A frame as it is stored: square picture, mask and the camera that belongs to them."""

    image: np.ndarray  # [S, S, 3] uint8 RGB
    mask: np.ndarray | None  # [S, S] uint8, foreground probability · 255
    camera: Cameras  # batch shape (), image size (S, S)


def read_image(path: StoragePath, size: tuple[int, int]) -> np.ndarray:
    """Decode an RGB picture [H, W, 3] uint8 that must be of `size` (height, width).

    Raises:
        DefectError: the file is missing, not a picture, truncated, of another size, or black.
    """
    image = _decode(_read(path, "image"), "RGB", size, "image")
    if sum(cv2.mean(image)[:3]) / 3 < BLACK_MEAN * 255:
        raise DefectError("image black")
    return image


def read_mask(path: StoragePath, size: tuple[int, int]) -> np.ndarray:
    """Decode a foreground probability · 255, [H, W] uint8, that must be of `size` (height, width).

    Raises:
        DefectError: the file is missing, not a picture, truncated, of another size, or shows no foreground.
    """
    mask = _decode(_read(path, "mask"), "L", size, "mask")
    if mask.max() < 128:
        raise DefectError("mask empty")
    return mask


def mask_center(mask: np.ndarray) -> tuple[float, float]:
    """Middle (u, v) in pixels of the foreground of a mask [H, W] that has any."""
    _, foreground = cv2.threshold(mask, 127, 1, cv2.THRESH_BINARY)
    middles = []
    for axis in (0, 1):
        shares = np.cumsum(cv2.reduce(foreground, axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S))
        tail = MASK_TAIL_FRACTION * shares[-1]
        low, high = np.searchsorted(shares, tail, side="right"), np.searchsorted(shares, shares[-1] - tail)
        middles.append(float(low + high + 1) / 2)
    return middles[0], middles[1]


def square_corner(size: tuple[int, int], center: tuple[float, float]) -> tuple[int, int]:
    """(top, left) in pixels of the largest square that fits into an image of `size`, as near around `center` (u, v) as
    it can be.
    """
    side = min(size)
    left, top = (round(middle - side / 2) for middle in center)
    return min(max(top, 0), size[0] - side), min(max(left, 0), size[1] - side)


def crop_and_resize(image: np.ndarray, mask: np.ndarray | None, camera: Cameras, image_size: int) -> View:
    """Cut the largest square around the object and scale it to `image_size`², image, mask and camera alike.

    The square is centred on the mask, or without one on the projection of the world's origin, where the normalised
    object is.
    """
    size = (image.shape[0], image.shape[1])
    if mask is not None:
        center = mask_center(mask)
    else:
        pixel, depth = camera.project(camera.world_to_camera.new_zeros(1, 3))
        center = (float(pixel[0, 0]), float(pixel[0, 1])) if depth[0] > 0 else (size[1] / 2, size[0] / 2)
    top, left = square_corner(size, center)
    side = min(size)
    part = np.s_[top : top + side, left : left + side]
    return View(
        image=resize_square(image[part], image_size),
        mask=None if mask is None else resize_square(mask[part], image_size),
        camera=camera.crop(top, left, (side, side)).resize((image_size, image_size)),
    )


def intensity(image: np.ndarray) -> tuple[float, float]:
    """Mean and variance of the RGB values in [0, 1] of a picture [H, W, 3] uint8, over all pixels and channels."""
    values = image.astype(np.float64) / 255
    return float(values.mean()), float(values.var())


def sharpness(image: np.ndarray) -> float:
    """Variance of the Laplacian of a picture's grey levels in [0, 255]: low where nothing is in focus (Pech-Pacheco et
    al. 2000).
    """
    return float(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


def mask_share(mask: np.ndarray) -> float:
    """Share of a mask [H, W] that is foreground."""
    return float((mask >= 128).mean())


def encode_image(image: np.ndarray) -> bytes:
    """RGB [H, W, 3] uint8 as JPEG, quality 95, colour at full resolution (4:4:4)."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def encode_mask(mask: np.ndarray) -> bytes:
    """[H, W] uint8 as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


def decode_image(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """The picture [H, W, 3] uint8 in a JPEG that `encode_image` made. Raises DefectError as `read_image`."""
    return _decode(data, "RGB", size, "image")


def decode_mask(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """The mask [H, W] uint8 in a PNG that `encode_mask` made. Raises DefectError as `read_mask`."""
    return _decode(data, "L", size, "mask")


def _read(path: StoragePath, what: str) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise DefectError(f"{what} file missing") from error  # any other failure is the disk's, and stops the run


def _decode(data: bytes, mode: str, size: tuple[int, int], what: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
            if (picture.height, picture.width) != size:  # known from the header: nothing large was allocated yet
                raise DefectError(f"{what} size differs from the annotation's")
            if mode == "RGB" and picture.format == "JPEG" and picture.mode in ("RGB", "L"):
                return simplejpeg.decode_jpeg(data, "RGB")  # strict: a warning is an error
            return np.asarray(picture if picture.mode == mode else picture.convert(mode))
    except _DECODE_ERRORS as error:
        raise DefectError(f"{what} undecodable or truncated") from error


def resize_square(picture: np.ndarray, side: int) -> np.ndarray:
    """Scale a square picture [H, H] or [H, H, 3] uint8 to `side`².

    Average over the area that each new pixel covers; linear when enlarging. Both keep [0, W] on [0, W]: no half-pixel
    shift.
    """
    if picture.shape[0] == side:
        return np.ascontiguousarray(picture)
    method = cv2.INTER_AREA if picture.shape[0] > side else cv2.INTER_LINEAR
    return cv2.resize(picture, (side, side), interpolation=method)
