"""Damaged photos and masks: their headers, EXIF, pixels, and what is planned for a capture of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from preprocessing.importing.checking import check_photos
from preprocessing.importing.photos.masks import read_mask_values
from preprocessing.importing.photos.pictures import PictureError, read_header, read_picture
from preprocessing.importing.reading import read_reconstruction
from preprocessing.importing.reconstructions import Reconstruction
from preprocessing.importing.solving.unposed_photos import read_lens
from tests.fuzz import mutations
from tests.fuzz.target import Target
from tests.support.foreign_captures import HEIGHT, NAMES, WIDTH, write_transforms


def photo_targets(folder: Path) -> list[Target]:
    """Photos as a phone writes them and their masks, below `folder`, and all that `viewdiff import` reads of them."""
    transforms = write_transforms(folder)
    first = transforms.parent / "images" / NAMES[0]
    _write_photo(first)
    tiff, mask = folder / "photo.tif", folder / "mask.png"
    _write_photo(tiff)
    Image.fromarray(np.tile(np.arange(WIDTH, dtype=np.uint8) * 4, (HEIGHT, 1))).save(mask)
    capture = read_reconstruction(transforms, None, None)
    masked = replace(capture, photos=tuple(replace(photo, mask_path=mask) for photo in capture.photos))
    ways = (*mutations.BYTES, *[mutations.wrong_head] * 5)
    return [
        Target("photo JPEG with EXIF", first, ways, _reads_photo(first), must_refuse=False),
        Target("photo TIFF", tiff, ways, _reads_photo(tiff), must_refuse=False),
        Target("photo's mask", mask, ways, lambda: _check_mask(mask), must_refuse=False),
        Target("a capture's photo", first, ways, lambda: _check_plans(capture), must_refuse=False),
        Target("a capture's mask", mask, ways, lambda: _check_plans(masked), must_refuse=False),
    ]


def _write_photo(path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = 6, "Maker", "Phone 3"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLength] = 4.2
    colors = np.random.default_rng(0).integers(40, 220, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    Image.fromarray(colors).resize((WIDTH, HEIGHT)).save(path, exif=exif)


def _reads_photo(path: Path) -> Callable[[], None]:
    """The reader of a photo's lens says None of what is no picture; the others refuse it."""

    def read() -> None:
        lens = read_lens(path)
        header, picture = read_header(path), read_picture(path)
        assert header.orientation in range(1, 9)
        assert min(header.size) > 0
        assert (picture.colors.shape, picture.colors.dtype) == ((*header.size, 3), np.uint8)
        assert picture.alpha is None or (picture.alpha.shape, picture.alpha.dtype) == (header.size, np.uint8)
        assert lens is not None
        # Pillow gives a TIFF's size as it will be shown.
        assert lens[0].size in (header.size[::-1], header.size if lens[1] == "TIFF" else None)

    return read


def _check_mask(path: Path) -> None:
    values = read_mask_values(path)
    assert (values.shape, values.dtype) == (read_header(path).size, np.uint8)
    assert values.max() >= 128


def _check_plans(capture: Reconstruction) -> None:
    """Each photo is planned or left out with a reason, which is the refusal here."""
    checked = check_photos(capture)
    assert len(checked.plans) + len(checked.left_out) == len(capture.photos)
    for plan in checked.plans:
        assert plan.seen_as in (1, plan.header.orientation)
        assert (plan.mask is None) == (plan.photo.mask_path is None)
    for item in checked.left_out:
        assert item.reason
        assert item.remedy
        raise PictureError(item.reason, item.remedy)
