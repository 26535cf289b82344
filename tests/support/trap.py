"""A pickle that is noticed when somebody opens it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)
