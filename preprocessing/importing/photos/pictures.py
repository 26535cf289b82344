"""Reads photos of every kind that a camera or an editor writes, and says of the others what they are and what to do.

Pictures are given as they are stored: the orientation, which the header names, is applied by whoever knows what the
camera saw. Colours become sRGB, because the base models were trained on what screens show.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageChops

from preprocessing.importing.photos.colors import to_srgb
from preprocessing.importing.photos.formats import (
    DECODE_ERRORS,
    FORMATS,
    PHOTOMETRIC,
    WHITE_IS_ZERO,
    foreign_format,
    is_raw_file,
    is_reduced,
)
from preprocessing.importing.photos.orientation import UPRIGHT, inverse, turn_picture, turned_size
from preprocessing.sequences.images import BLACK_MEAN, MAX_PIXELS

DAMAGED = "damaged: it cannot be decoded to its end"
OPAQUE = 255
# What is decoded by Pillow or, in 16 bits, by OpenCV. A mode that is not here has no colours that a screen shows.
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "La", "CMYK", "YCbCr", "I;16", "I;16B"})
_MODE_NAMES = {"F": "32-bit floating-point values", "I": "32-bit whole numbers", "LAB": "L*a*b* colours"}


class PictureError(Exception):
    """A picture that cannot be used: `reason` says what it is, `remedy` what to do about it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason, self.remedy = reason, remedy


@dataclass(frozen=True)
class Header:
    """What a picture's file says before its pixels are decoded."""

    size: tuple[int, int]  # (height, width) as stored
    orientation: int  # 1 to 8, see `orientation`
    kind: str  # JPEG, PNG, TIFF, WEBP or BMP
    bits: int  # of a channel
    is_plain: bool  # JPEG or PNG of 8-bit grey or RGB: every reader takes it as it is, but for profile and orientation


@dataclass(frozen=True, eq=False)
class Picture:
    """Pixels as stored."""

    colors: np.ndarray  # [H, W, 3] uint8 sRGB
    alpha: np.ndarray | None  # [H, W] uint8; None if all is opaque
    changes: tuple[str, ...]  # what was done to the pixels, in words that several pictures may share


def read_header(path: Path) -> Header:
    """Raises PictureError: the file is missing, none that is read here, or damaged at its beginning."""
    data = _bytes(path)
    with _opened(data, path) as picture:
        return _header(picture, data)


def read_picture(path: Path) -> Picture:
    """Decode a photo. Raises PictureError as `read_header`, or it is damaged or black."""
    data = _bytes(path)
    with _opened(data, path) as picture:
        header, profile = _header(picture, data), picture.info.get("icc_profile")
        if picture.format in ("JPEG", "MPO") and picture.mode in ("L", "RGB"):
            found, alpha = Image.fromarray(simplejpeg.decode_jpeg(data, "RGB")), None  # strict: a warning is an error
        else:
            found, alpha = _decoded(picture, data, header.orientation)
        changes = ["from 16 bits a channel to 8"] if header.bits > 8 else []
        if profile:
            found, change = to_srgb(found, profile)
            changes += [change] if change else []
        elif found.mode == "CMYK":
            changes.append("from CMYK to sRGB, without a profile")
        colors = np.asarray(found.convert("RGB"))
    if header.kind not in ("JPEG", "PNG"):
        changes.append(f"from {header.kind} to JPEG")
    if alpha is not None and alpha.min() == OPAQUE:
        alpha = None
    _require_light(colors, alpha)
    return Picture(colors, alpha, tuple(changes))


def read_values(path: Path) -> np.ndarray:
    """The values of a picture that is a mask, as stored: [H, W] uint8, its alpha if that says anything, else its grey
    levels. Raises PictureError as `read_header`, or it is damaged.
    """
    data = _bytes(path)
    with _opened(data, path) as picture:
        found, alpha = _decoded(picture, data, _header(picture, data).orientation)
        return np.asarray(found.convert("L")) if alpha is None or alpha.min() == OPAQUE else alpha


def on_white(colors: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The picture [H, W, 3] over white, as renderings of single objects have it: what lies under alpha 0 is no picture,
    editors leave anything there.
    """
    share = alpha[..., None].astype(np.uint16)
    return ((colors * share + 255 * (255 - share) + 127) // 255).astype(np.uint8)


def _require_light(colors: np.ndarray, alpha: np.ndarray | None) -> None:
    """Judged where alpha says that there is something."""
    shown = None if alpha is None else (alpha >= 128).astype(np.uint8)
    if shown is not None and not shown.any():
        raise PictureError("transparent everywhere", "export it with the object opaque, or without alpha")
    if sum(cv2.mean(colors, shown)[:3]) / 3 < BLACK_MEAN * 255:
        raise PictureError("black", "take it out of the reconstruction, or export the photo again")


@contextmanager
def _opened(data: bytes, path: Path) -> Iterator[Image.Image]:
    """The picture, refused in words if it is none, is not supported or turns out to be damaged."""
    if foreign := foreign_format(data, path.suffix):
        raise PictureError(*foreign)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata that is not used here, and sizes, which are checked
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                _require_supported(picture)
                yield picture
    except Image.DecompressionBombError as error:  # Pillow's own limit is twice ours
        raise _too_large() from error
    except Image.UnidentifiedImageError as error:
        raise PictureError("no picture of a known kind", "convert it to JPEG or PNG") from error
    except DECODE_ERRORS as error:
        raise PictureError(DAMAGED, "copy or export it again") from error


def _too_large() -> PictureError:
    return PictureError(f"larger than {MAX_PIXELS:,} pixels", "scale it down")


def _require_supported(picture: Image.Image) -> None:
    if picture.width * picture.height > MAX_PIXELS:
        raise _too_large()
    if picture.format == "TIFF" and is_raw_file(picture):
        raise PictureError("a camera's raw file", "develop it to JPEG")
    if picture.mode not in _MODES:
        what = _MODE_NAMES.get(picture.mode, f"values of the kind {picture.mode}")
        raise PictureError(f"a picture of {what}", "export it with 8 or 16 bits a channel")
    if picture.format != "MPO" and _pages(picture) > 1:  # a phone's JPEG keeps depth or previews behind the picture
        what = "pages" if picture.format == "TIFF" else "pictures, an animation"
        raise PictureError(f"a {picture.format} of several {what}", "export the picture that belongs to the camera")


def _pages(picture: Image.Image) -> int:
    """Pictures in the file, without smaller copies of the first, which are kept in TIFF."""
    count = getattr(picture, "n_frames", 1)
    if picture.format != "TIFF" or count == 1:
        return count
    full = 0
    for page in range(count):
        picture.seek(page)
        full += not is_reduced(picture.tag_v2)
    picture.seek(0)
    return full


def _header(picture: Image.Image, data: bytes) -> Header:
    orientation = _exif(picture, data).get(ExifTags.Base.Orientation, UPRIGHT)
    orientation = orientation if orientation in range(1, 9) else UPRIGHT  # 0 and others mean nothing
    size = (picture.height, picture.width)
    if picture.format == "TIFF":  # whose size Pillow gives as it will be shown
        size = turned_size(size, orientation)
    kind = "JPEG" if picture.format == "MPO" else str(picture.format)
    plain = kind in ("JPEG", "PNG") and picture.mode in ("L", "RGB") and not picture.has_transparency_data
    bits = _bits(picture, data)
    return Header(size, orientation, kind, bits, is_plain=plain and bits <= 8)


def _exif(picture: Image.Image, data: bytes) -> Image.Exif:
    """PNG may keep EXIF behind the pixels, which Pillow would decode to come there."""
    if picture.format != "PNG":
        return picture.getexif()
    place = 8
    while (chunk := data[place : place + 8]) and len(chunk) == 8:
        (length,) = struct.unpack(">I", chunk[:4])
        if chunk[4:] == b"eXIf":
            picture.info["exif"] = b"Exif\x00\x00" + data[place + 8 : place + 8 + length]
        place += length + 12
    return Image.Image.getexif(picture)


def _bits(picture: Image.Image, data: bytes) -> int:
    """Bits of a channel as stored: Pillow gives colours of 16 bits in 8."""
    if picture.format == "TIFF":
        return max(picture.tag_v2.get(258, (1,)))
    return data[24] if picture.format == "PNG" else 8  # behind signature, name and length of the first chunk, and sides


def _decoded(picture: Image.Image, data: bytes, orientation: int) -> tuple[Image.Image, np.ndarray | None]:
    """Pixels as stored, in RGB, L or CMYK, and alpha [H, W]."""
    picture.load()
    is_deep = _bits(picture, data) == 16 and picture.format in ("PNG", "TIFF")
    found, alpha = _deep(picture, data) if is_deep else _shallow(picture)
    if picture.format == "TIFF" and orientation != UPRIGHT:  # which Pillow and OpenCV have turned already
        found = Image.fromarray(turn_picture(np.asarray(found), inverse(orientation)), found.mode)
        alpha = None if alpha is None else turn_picture(alpha, inverse(orientation))
    return found, alpha


def _shallow(picture: Image.Image) -> tuple[Image.Image, np.ndarray | None]:
    """Colours and alpha as Pillow decodes them, in 8 bits a channel."""
    alpha = None
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        alpha = np.asarray(picture.getchannel("A"))
    found = picture if picture.mode in ("RGB", "L", "CMYK") else picture.convert("RGB")
    if picture.format == "JPEG" and picture.mode == "CMYK" and "adobe" not in picture.info:
        found = ImageChops.invert(found)  # Pillow takes all for Adobe's, which stores 255 - ink
    return found, alpha


def _deep(picture: Image.Image, data: bytes) -> tuple[Image.Image, np.ndarray | None]:
    """The same as OpenCV decodes them from 16 bits a channel, rounded to 8."""
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16:
        raise PictureError("of 16 bits a channel in a form that is not read", "export it with 8 bits a channel")
    values = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if values.ndim == 2:
        if picture.format == "TIFF" and picture.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO:
            values = 255 - values  # OpenCV gives the values as they are stored
        return Image.fromarray(values), None
    colors = np.ascontiguousarray(values[..., 2::-1])
    alpha = values[..., 3] if values.shape[2] == 4 else None
    return Image.fromarray(colors), alpha


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PictureError("missing", "put the file there") from error
    except IsADirectoryError as error:
        raise PictureError("a folder, no file", "name the picture's file") from error
