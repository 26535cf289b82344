"""What a file is that should have been a photo, told by its first bytes (and raw files' also by their names, because
many of them are TIFF files with a thumbnail in front).
"""

from __future__ import annotations

import struct
import zlib

import cv2
from PIL import Image, TiffImagePlugin

# Names of Pillow's decoders that a picture may need; a phone's JPEG of several pictures is opened as JPEG.
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")
# What decoders raise on damaged files. The second line is of Pillow's reader of TIFF tags.
DECODE_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, cv2.error, Image.DecompressionBombError),
    *(TypeError, KeyError, IndexError, OverflowError),
)
# What the names of such files end with, the commonest of what tools write first.
PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
# Bytes at a file's start that say what it is.
HEAD_BYTES = 64

_TO_JPEG = "convert it to JPEG"
_HEIC = ("a HEIC picture", "convert it to JPEG; on an iPhone, Settings > Camera > Formats > Most Compatible takes JPEG")
_RAW = ("a camera's raw file", "develop it to JPEG")
# By the name that follows ftyp in ISO's base media file format.
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), _HEIC),
    **dict.fromkeys((b"avif", b"avis"), ("an AVIF picture", _TO_JPEG)),
    b"crx ": _RAW,
    b"jxl ": ("a JPEG XL picture", _TO_JPEG),
}
_VIDEO = ("a video", "take photos out of it, or name it alone with --solve-cameras")
_STARTS = {
    b"\x1aE\xdf\xa3": _VIDEO,  # Matroska, WebM
    b"GIF8": ("a GIF picture", _TO_JPEG),
    b"\x00\x00\x00\x0cjP  ": ("a JPEG 2000 picture", _TO_JPEG),
    b"\xff\x4f\xff\x51": ("a JPEG 2000 picture", _TO_JPEG),
    b"\x00\x00\x00\x0cJXL ": ("a JPEG XL picture", _TO_JPEG),
    b"\xff\x0a": ("a JPEG XL picture", _TO_JPEG),
    b"v/1\x01": ("an OpenEXR picture of light, not of colours", "tone-map it and export a JPEG"),
    b"#?RADIANCE": ("a Radiance HDR picture of light, not of colours", "tone-map it and export a JPEG"),
    b"8BPS": ("a Photoshop file", "export a JPEG or PNG of it"),
    b"%PDF": ("a PDF", "export a JPEG of it"),
    b"<svg": ("an SVG drawing", "export a PNG of it"),
    b"version https://git-lfs": ("a Git LFS pointer, not the picture itself", "fetch it with: git lfs pull"),
    b"FUJIFILMCCD-RAW": _RAW,
    b"IIU\x00": _RAW,
    b"IIRO": _RAW,
    b"IIRS": _RAW,
    b"MMOR": _RAW,
}
_RAW_SUFFIXES = (
    *(".dng", ".nef", ".nrw", ".cr2", ".cr3", ".crw", ".arw", ".srf", ".sr2"),
    *(".raf", ".rw2", ".orf", ".pef", ".srw", ".3fr", ".iiq", ".x3f", ".rwl"),
)
# Tags of TIFF, and values that they have.
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0
_DNG_VERSION, _SUBFILE, _REDUCED = 50706, 254, 1
_SENSOR_VALUES = (32803, 34892)  # colour filter array, linear raw


def foreign_format(data: bytes, suffix: str) -> tuple[str, str] | None:
    """What a file is and what to do about it, if it is known to be something that is not read; `suffix` is its name's
    ending.
    """
    if not data:
        return "empty: it has no bytes", "copy or export it again"
    if suffix.lower() in _RAW_SUFFIXES or data[8:11] == b"CR\x02":
        return _RAW
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], _VIDEO)
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return _VIDEO
    return next((what for start, what in _STARTS.items() if data.startswith(start)), None)


def is_raw_file(picture: Image.Image) -> bool:
    """Whether a TIFF file is a raw file, of which Pillow would read the thumbnail."""
    tags = picture.tag_v2
    return _DNG_VERSION in tags or tags.get(PHOTOMETRIC) in _SENSOR_VALUES or is_reduced(tags)


def is_reduced(tags: TiffImagePlugin.ImageFileDirectory_v2) -> bool:
    """Whether a page of a TIFF file is a smaller copy of another."""
    return bool(tags.get(_SUBFILE, 0) & _REDUCED)
