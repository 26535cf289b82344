"""Reads masks of every kind: probabilities, black and white, 0 and 1, the colours or the alpha of a cut-out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from preprocessing.importing.photos.pictures import PictureError, read_values

_REMEDY = "write masks that are white (255) where the object is and black elsewhere"


def read_mask_values(path: Path) -> np.ndarray:
    """Foreground probability · 255 of a mask as it is stored, [H, W] uint8.

    Grey levels are probabilities. If there are only two and one of them is dark, as 0 and 1 or the two colours of a
    palette, the brighter one is the object.

    Raises:
        PictureError: as `read_values`; or nothing is foreground, or all is equal, or there are several labels.
    """
    return foreground(read_values(path))


def foreground(values: np.ndarray) -> np.ndarray:
    """The same for values [H, W] uint8. Raises PictureError as `read_mask_values`."""
    low, high = int(values.min()), int(values.max())
    if high == 0:
        raise PictureError("empty: nothing in it is white", _REMEDY)
    if low == high < 128:
        raise PictureError("of one value that is neither black nor white", _REMEDY)
    if low == high:
        return np.full_like(values, 255)
    levels = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    if len(levels) == 2 and low < 128:
        return np.where(values == high, 255, 0).astype(np.uint8)
    if high < 128:
        what = "several labels" if len(levels) <= 32 else "dark values only"
        raise PictureError(f"of {what}", _REMEDY)
    return values
