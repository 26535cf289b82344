"""The photos in a folder: which files they are, which of them one lens took, and one name for all of their content."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from infra.errors import UserError
from infra.fingerprint import FINGERPRINT_LENGTH
from infra.storage import digest_file
from preprocessing.importing.formats import DECODE_ERRORS, FORMATS

# What a photo's name ends with.
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
_EXIF_FOLDER, _MAKE, _MODEL, _FOCAL_LENGTH, _FOCAL_LENGTH_35MM = 0x8769, 0x010F, 0x0110, 0x920A, 0xA405


@dataclass(frozen=True)
class Lens:
    """Photos of equal lenses share one camera: the same size of picture, and the same camera and zoom as far as EXIF
    names them. A photo that is only turned by EXIF has the same lens, since pixels are meant as they are stored.
    """

    size: tuple[int, int]  # (width, height) of the stored pixels
    exif: tuple[str, ...]


def find_photos(folder: Path, *, but: Path | None = None) -> list[str]:
    """Names of the photos below `folder`, relative to it, sorted; hidden files and those below `but` are left out.

    Raises:
        UserError: there is no such folder, or no photo in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the folder of the photos, or a video file")
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    left_out = but.resolve() if but is not None else None
    shown = [
        file
        for file in files
        if not any(part.startswith(".") for part in file.parts)
        and (left_out is None or left_out not in (folder / file).resolve().parents)
    ]
    photos = sorted(file.as_posix() for file in shown if file.suffix.lower() in SUFFIXES)
    if not photos:
        others = Counter(file.suffix.lower() or "no ending" for file in shown)
        there = ", ".join(f"{count} × {suffix}" for suffix, count in others.most_common(5)) or "nothing"
        raise UserError(
            f"{folder}: holds no photos ({', '.join(SUFFIXES)}), but {there}; convert them, or name a video"
        )
    return photos


def read_lens(path: Path) -> tuple[Lens, str] | None:
    """The lens of a photo and the format of its file, from the header alone; None when it is no picture."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            exif = picture.getexif()
            details = exif.get_ifd(_EXIF_FOLDER)
            values = (exif.get(_MAKE), exif.get(_MODEL), details.get(_FOCAL_LENGTH), details.get(_FOCAL_LENGTH_35MM))
            return Lens(picture.size, tuple(str(value) for value in values)), str(picture.format)
    except DECODE_ERRORS:
        return None


def as_png(path: Path) -> bytes | None:
    """The pixels of a photo as they are stored, as PNG; None when they cannot be decoded."""
    buffer = io.BytesIO()
    try:
        with Image.open(path, formats=FORMATS) as picture:
            picture.convert("RGB").save(buffer, "PNG")
    except DECODE_ERRORS:
        return None
    return buffer.getvalue()


def content_name(files: Sequence[Path], *facts: str) -> str:
    """A name for a folder of work on these files: another one if their content, order or the facts differ."""
    text = "\n".join([*map(digest_file, files), *facts])
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_LENGTH]
