"""The photos in a folder: which files they are, which of them one lens took, and one name for all of their content."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from infra.errors import UserError
from infra.provenance.fingerprint import FINGERPRINT_LENGTH
from infra.storage.files import digest_file
from preprocessing.importing.photos.formats import DECODE_ERRORS, FORMATS, HEAD_BYTES, PHOTO_SUFFIXES, foreign_format

_EXIF_FOLDER, _MAKE, _MODEL, _FOCAL_LENGTH, _FOCAL_LENGTH_35MM = 0x8769, 0x010F, 0x0110, 0x920A, 0xA405


@dataclass(frozen=True)
class Lens:
    """Photos of equal lenses share one camera: the same size of picture, and the same camera and zoom as far as EXIF
    names them. A photo that is only turned by EXIF has the same lens, since pixels are meant as they are stored.
    """

    size: tuple[int, int]  # (width, height) of the stored pixels
    exif: tuple[str, ...]


@dataclass(frozen=True)
class FolderContent:
    """The files below a folder, without hidden ones."""

    photos: list[str]  # names relative to the folder, sorted
    foreign: Counter[tuple[str, str]]  # pictures and videos that are not read: what they are and what to do, how many
    others: Counter[str]  # endings of all files but the photos

    def unread(self) -> str:
        """The foreign files in words."""
        return "; ".join(f"{count} × {what}: {remedy}" for (what, remedy), count in self.foreign.most_common())


def look_through(folder: Path, *, but: Path | None = None) -> FolderContent:
    """What is below `folder`, without what is below `but`."""
    left_out = but.resolve() if but is not None else None
    photos, foreign, others = list[str](), Counter[tuple[str, str]](), Counter[str]()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts) or left_out in path.resolve().parents or not path.is_file():
            continue
        if path.suffix.lower() in PHOTO_SUFFIXES:
            photos.append(name.as_posix())
            continue
        others[path.suffix.lower() or "no ending"] += 1
        if what := _foreign(path):
            foreign[what] += 1
    return FolderContent(sorted(photos), foreign, others)


def _foreign(path: Path) -> tuple[str, str] | None:
    if path.stat().st_size == 0 or not os.access(path, os.R_OK):
        return None
    with path.open("rb") as file:
        return foreign_format(file.read(HEAD_BYTES), path.suffix)


def find_photos(folder: Path, *, but: Path | None = None) -> FolderContent:
    """What is below `folder`, photos among it, without what is below `but`.

    Raises:
        UserError: there is no such folder, or no photo in it; or all of it is below `but`.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the folder of the photos, or a video file")
    if but is not None and folder.resolve().is_relative_to(but.resolve()):
        raise UserError(f"--masks {but}: the photos are in there too, {folder}; name a folder that holds masks alone")
    found = look_through(folder, but=but)
    if found.photos:
        return found
    if found.foreign:
        raise UserError(f"{folder}: holds no photos that can be read, but {found.unread()}")
    there = ", ".join(f"{count} × {suffix}" for suffix, count in found.others.most_common(5)) or "nothing"
    raise UserError(
        f"{folder}: holds no photos ({', '.join(PHOTO_SUFFIXES)}), but {there}; name the folder of the "
        "photos, or a video"
    )


def read_lens(path: Path) -> tuple[Lens, str] | None:
    """The lens of a photo and the format of its file, from the header alone; None when it is no picture."""
    try:
        # Damaged EXIF, of which Pillow warns, tells no camera.
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as picture:
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
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as picture:
            picture.convert("RGB").save(buffer, "PNG")
    except DECODE_ERRORS:
        return None
    return buffer.getvalue()


def content_name(files: Sequence[Path], *facts: str) -> str:
    """A name for a folder of work on these files: another one if their content, order or the facts differ."""
    text = "\n".join([*map(digest_file, files), *facts])
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_LENGTH]
