"""Which sequences go into which shard and split: a pure function of the config and the annotations, so that any retry
writes the same bytes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from infra.errors import UserError
from infra.storage.files import StoragePath
from preprocessing.captures.captions import default_caption, read_captions
from preprocessing.captures.capture import RejectionError, Sequence
from preprocessing.captures.co3d import read_category, select_categories
from preprocessing.captures.set_lists import (
    EvalBatch,
    check_subset,
    choose_split,
    listed_splits,
    read_eval_batches,
    require_listed,
)
from preprocessing.config import PreprocessConfig
from preprocessing.sequences.screening import screen
from preprocessing.shards.schema import SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class PlannedSequence:
    """A sequence that passed the checks on its annotations, and what is stored with it."""

    sequence: Sequence
    split: str
    captions: tuple[str, ...]


@dataclass(frozen=True)
class ShardTask:
    """The unit of work: the sequences that one shard is made from."""

    number: int
    sequences: tuple[PlannedSequence, ...]

    @property
    def num_frames(self) -> int:
        """Frames in the annotations of its sequences."""
        return sum(len(planned.sequence.frames) for planned in self.sequences)

    def digest(self, config: PreprocessConfig) -> str:
        """SHA-256 of everything that decides the shard's bytes, the pictures apart. (repr, because cameras may be
        NaN.)
        """
        return hashlib.sha256(repr((SCHEMA_VERSION, config, self)).encode()).hexdigest()


@dataclass(frozen=True)
class RejectedSequence:
    """A sequence that is not stored."""

    category: str
    sequence: str
    reason: str


@dataclass(frozen=True)
class ShardPlan:
    """All shards, and the sequences that their annotations already rule out."""

    tasks: tuple[ShardTask, ...]
    rejected: tuple[RejectedSequence, ...]
    eval_batches: tuple[EvalBatch, ...]  # of the subset


def plan_shards(root: StoragePath, config: PreprocessConfig) -> ShardPlan:
    """Read the annotations below `root` and cut the sequences, sorted by (category, name), into shards.

    Raises:
        UserError: `root`, a category or an annotation file is not what it should be.
    """
    planned: list[PlannedSequence] = []
    rejected: list[RejectedSequence] = []
    eval_batches: list[EvalBatch] = []
    categories = select_categories(root, config.categories)
    check_subset(root, categories, config.subset)
    for category in categories:
        eval_batches += read_eval_batches(root, category).get(str(config.subset), ())
        listed, captions = listed_splits(root, category, config.subset), read_captions(root, category)
        for sequence in read_category(root, category):
            try:
                require_listed(sequence, listed, config)
                screen(sequence, config)
            except RejectionError as reason:
                rejected.append(RejectedSequence(category, sequence.name, str(reason)))
                continue
            split = choose_split(sequence, listed.get(sequence.name, frozenset()), config.split_fractions)
            texts = captions.get(sequence.name, (default_caption(category),))
            planned.append(PlannedSequence(sequence, split, texts))
    size = config.sequences_per_shard
    groups = [tuple(planned[start : start + size]) for start in range(0, len(planned), size)]
    tasks = tuple(ShardTask(number, group) for number, group in enumerate(groups))
    return ShardPlan(tasks, tuple(rejected), tuple(eval_batches))


def require_sequences(root: StoragePath, num_stored: int, rejected: Iterable[RejectedSequence]) -> None:
    """Check that something is left.

    Raises:
        UserError: no sequence is; the message goes on with a table of the reasons.
    """
    if num_stored:
        return
    rejected = tuple(rejected)
    counts = Counter(item.reason for item in rejected)
    examples = {item.reason: f"{item.category}/{item.sequence}" for item in reversed(rejected)}
    lines = [f"{count:>9}  {reason} (as {examples[reason]})" for reason, count in counts.most_common()]
    raise UserError(
        f"dataset root {root}: none of {len(rejected)} sequences is usable; "
        "mend the captures or relax the settings of preprocess\n" + "\n".join(["sequences  reason", *lines])
    )
