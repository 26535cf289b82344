"""What an output folder shows while it is written."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from preprocessing.shards.schema import DATASET_NAME, INDEX_NAME, shard_name

STAGES = ("before the first shard", "between shards", "in the folder's commit")
_NUMBER = re.compile(r"\.?shard-(\d{6})")


@dataclass(frozen=True)
class State:
    """One look at the folder."""

    committed: frozenset[int]  # shards with a record
    in_work: frozenset[int]  # shards with a temporary file, or renamed and without a record
    stage: str
    complete: bool  # there is a manifest, and no record any more

    def is_beyond(self, earlier: State) -> bool:
        """Whether what was in work earlier is committed, and a further shard or the folder too."""
        if self.stage == STAGES[2]:
            return self.complete or earlier.stage != STAGES[2]
        return earlier.in_work <= self.committed and len(self.committed) > len(earlier.committed)


class Folder:
    """An output folder. Notices shards that are written again after they were committed."""

    def __init__(self, path: Path, num_shards: int) -> None:
        self.path = path
        self._num_shards = num_shards
        self._first_seen: dict[int, tuple[int, int, int]] = {}

    def look(self) -> State:
        """What is there now."""
        names = os.listdir(self.path)  # noqa: PTH208 one call, as near to one moment as it gets
        numbers = {name: int(match[1]) for name in names if (match := _NUMBER.match(name))}
        committed = frozenset(
            number for name, number in numbers.items() if name.endswith(".rows.parquet") and not name.startswith(".")
        )
        for number in committed - self._first_seen.keys():
            self._first_seen[number] = self._identity(number)
        committing = len(committed) == self._num_shards or any(INDEX_NAME in name for name in names)
        if committing:
            stage, in_work = STAGES[2], frozenset[int]()
        else:
            stage, in_work = STAGES[bool(committed)], frozenset(numbers.values()) - committed
        return State(committed, in_work, stage, complete=DATASET_NAME in names and not committed)

    def rewritten(self) -> list[str]:
        """Shards that are not the files any more that they were when they were committed."""
        return [shard_name(number) for number, seen in self._first_seen.items() if self._identity(number) != seen]

    def _identity(self, number: int) -> tuple[int, int, int]:
        """What a file that is written again cannot keep."""
        state = (self.path / shard_name(number)).stat()
        return state.st_ino, state.st_mtime_ns, state.st_size
