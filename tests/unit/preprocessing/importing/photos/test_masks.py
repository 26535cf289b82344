"""Masks of every kind say the same: where the object is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocessing.importing.photos.masks import foreground, read_mask_values
from preprocessing.importing.photos.pictures import PictureError

SIZE = (20, 30)
SHOWN = np.zeros(SIZE, bool)
SHOWN[5:15, 8:20] = True
WHITE = np.where(SHOWN, 255, 0).astype(np.uint8)
RED = np.stack([np.where(SHOWN, 128, 0)] + [np.zeros(SIZE)] * 2, axis=-1).astype(np.uint8)


def _palette() -> Image.Image:
    """As segmentation tools colour label 1: dark red, which is darker than half."""
    picture = Image.fromarray(SHOWN.astype(np.uint8))
    picture.putpalette([0, 0, 0, 128, 0, 0])
    return picture


def _cutout() -> Image.Image:
    """The object in its colours, transparent around."""
    picture = Image.fromarray(np.full((*SIZE, 3), 90, np.uint8))
    picture.putalpha(Image.fromarray(WHITE))
    return picture


def _opaque() -> Image.Image:
    picture = Image.fromarray(np.repeat(WHITE[..., None], 3, axis=2))
    picture.putalpha(255)
    return picture


KINDS = {
    "grey": Image.fromarray(WHITE),
    "zero and one": Image.fromarray(SHOWN.astype(np.uint8)),
    "one bit": Image.fromarray(WHITE).convert("1"),
    "sixteen bits": Image.fromarray(WHITE.astype(np.uint16) * 257),
    "colours": Image.fromarray(np.repeat(WHITE[..., None], 3, axis=2)),
    "one dark colour": Image.fromarray(RED),
    "palette": _palette(),
    "cut-out": _cutout(),
    "opaque alpha": _opaque(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_masks(tmp_path: Path, kind: str) -> None:
    KINDS[kind].save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask_values(tmp_path / "mask.png"), WHITE)


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".webp", ".bmp"])
def test_other_files(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(WHITE).save(tmp_path / f"mask{suffix}")
    np.testing.assert_array_equal(read_mask_values(tmp_path / f"mask{suffix}") >= 128, SHOWN)


def test_grey_levels_are_probabilities(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask_values(tmp_path / "mask.png"), values)


@pytest.mark.parametrize("low", [128, 200, 254])
def test_two_bright_levels_are_both_the_object(low: int) -> None:
    """An alpha that is nearly opaque everywhere hides nothing."""
    values = np.where(SHOWN, 255, low).astype(np.uint8)
    np.testing.assert_array_equal(foreground(values), values)
    np.testing.assert_array_equal(foreground(np.where(SHOWN, 255, 127).astype(np.uint8)), WHITE)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(SIZE), "^empty: nothing in it is white; write masks that are white"),
        (np.full(SIZE, 7), "^of one value that is neither black nor white; "),
        (np.arange(600).reshape(SIZE) % 4, "^of several labels; write masks"),
        (np.arange(600).reshape(SIZE) % 100, "^of dark values only; "),
    ],
)
def test_what_says_nothing_is_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(PictureError, match=message):
        read_mask_values(tmp_path / "mask.png")
