"""Names that a person may type, known without importing what they stand for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

PRESET_NAMES = ("tiny", "single_gpu", "released", "paper", "pyramid")
MOST_LISTED = 20


def nearest(name: str, choices: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest one, or all there are, or that they are too many."""
    known = list(choices)
    if close := difflib.get_close_matches(name, known, n=1):
        return f"; did you mean {close[0]!r}?"
    return f"; choose from {', '.join(known)}" if len(known) <= MOST_LISTED else f"; none of {len(known)} is like it"
