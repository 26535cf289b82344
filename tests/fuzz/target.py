"""A kind of file that is given damaged, and what reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.mutations import Mutation


@dataclass(frozen=True)
class Target:
    """A kind of file, and what reads it."""

    name: str
    path: Path  # the file that is damaged
    mutations: tuple[Mutation, ...]
    read: Callable[[], None]  # returns if it accepts the file; then what it gave has been checked
    must_refuse: bool  # after the commit every change is damage
