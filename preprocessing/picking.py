"""Some of many, evenly picked."""

from __future__ import annotations

import numpy as np


def evenly(count: int, wanted: int) -> np.ndarray:
    """At most `wanted` places of `count`, ascending: evenly spaced, the first and the last among them."""
    places: np.ndarray = np.linspace(0, count - 1, min(count, wanted)).round().astype(int)
    return places


def evenly_on_turn(count: int, wanted: int) -> list[int]:
    """At most `wanted` places of `count` that lie on a turn: the first, but not the last, which lies beside it."""
    picks = min(count, wanted)
    return [place * count // picks for place in range(picks)]
