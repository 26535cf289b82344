"""Values of JSON objects that other tools wrote, checked to be of the kind that they should be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from preprocessing.importing.reconstructions import MAX_VALUE

Fields = Mapping[str, Any]


class FieldError(Exception):
    """What is wrong with the fields of a frame, and what to do."""


def said(values: Fields) -> dict[str, Any]:
    """The fields that are not null, which counts as missing."""
    return {key: value for key, value in values.items() if value is not None}


def number(values: Fields, key: str) -> float | None:
    """The number that a field holds; None where it is missing or null.

    Raises:
        FieldError: it is anything else, or not finite.
    """
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_VALUE:
        raise FieldError(f"{key} is {str(value)[:40]!r}, which is no number; correct it")
    return float(value)


def matrix(value: Any, rows: int, columns: int) -> np.ndarray | None:
    """[rows, columns] of nested lists, or of one flat list, of finite numbers; None if it is anything else."""
    if isinstance(value, list) and all(isinstance(row, list) for row in value):
        value = [item for row in value if len(row) == columns for item in row]
    if not isinstance(value, list) or len(value) != rows * columns:
        return None
    if any(isinstance(item, bool) or not isinstance(item, int | float) or not abs(item) < MAX_VALUE for item in value):
        return None
    return np.array(value, dtype=np.float64).reshape(rows, columns)
