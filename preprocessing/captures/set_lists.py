"""CO3Dv2's lists of frames: which are for training and testing in each subset, and which to evaluate on.

ROOT/<category>/set_lists/set_lists_<subset>.json          {"train" | "val" | "test": [[sequence, number, path], ...]}
ROOT/<category>/eval_batches/eval_batches_<subset>.json    [[[sequence, number, path], ...], ...]; of each batch the
                                                           first frame is the target, the others are given
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from infra.errors import UserError
from infra.storage.files import StoragePath
from preprocessing.captures.capture import RejectionError, Sequence
from preprocessing.config import PreprocessConfig

SPLITS = ("train", "val", "test")
_ERRORS = (ValueError, RecursionError, AttributeError, TypeError, LookupError)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EvalBatch:
    """Frames of one sequence to evaluate on."""

    category: str
    sequence: str
    frame_numbers: tuple[int, ...]  # the target, then those that are given


def read_set_lists(root: StoragePath, category: str) -> dict[str, dict[str, frozenset[str]]]:
    """By subset ("fewview_train", "manyview_dev_0", ...) and sequence, the splits ("train", "val", "test") of the
    subset's set list that hold any of the sequence's frames.

    Raises:
        UserError: a set list is not the JSON that CO3Dv2 defines.
    """

    def splits(lists: Any) -> dict[str, frozenset[str]]:
        found: dict[str, set[str]] = defaultdict(set)
        for split in SPLITS:
            for name in {entry[0] for entry in lists.get(split) or ()}:
                found[str(name)].add(split)
        return {name: frozenset(named) for name, named in found.items()}

    return _read(root / category, "set_lists", splits, "a JSON object of lists of [sequence, frame number, path]")


def check_subset(root: StoragePath, categories: Iterable[str], subset: str | None) -> None:
    """Check that some category has set lists of the subset, if one is asked for.

    Raises:
        UserError: none has; the message lists those that there are.
    """
    if subset is None:
        return
    pattern = "set_lists/set_lists_*.json"
    known = {path.stem.removeprefix("set_lists_") for name in categories for path in (root / name).glob(pattern)}
    if subset not in known:
        names = ", ".join(sorted(known)) or "none"
        raise UserError(f"preprocess: subset {subset!r} has no set lists in {root}; there are: {names}")


def read_eval_batches(root: StoragePath, category: str) -> dict[str, tuple[EvalBatch, ...]]:
    """The evaluation batches of every subset that has some.

    Raises:
        UserError: a file of them is not the JSON that CO3Dv2 defines.
    """

    def batch(frames: Any) -> EvalBatch:
        names, numbers = {frame[0] for frame in frames}, tuple(frame[1] for frame in frames)
        if len(numbers) < 2 or not all(type(number) is int for number in numbers):
            raise ValueError("a batch needs a target and another frame, by number")
        (name,) = names
        return EvalBatch(category, str(name), numbers)

    return _read(
        root / category,
        "eval_batches",
        lambda batches: tuple(map(batch, batches)),
        "a JSON list of batches, each a list of [sequence, frame number, path] of one sequence",
    )


def _read(folder: StoragePath, kind: str, parse: Callable[[Any], T], form: str) -> dict[str, T]:
    """What `parse` makes of each file <kind>/<kind>_<subset>.json, by subset."""
    paths: list[StoragePath] = [*(folder / kind).glob(f"{kind}_*.json")]
    found = {}
    for path in sorted(paths, key=str):
        try:
            found[path.stem.removeprefix(f"{kind}_")] = parse(json.loads(path.read_bytes()))
        except _ERRORS as error:
            raise UserError(f"{kind} {path}: not {form} ({error}); download it again") from error
    return found


def require_listed(sequence: Sequence, listed: Container[str], config: PreprocessConfig) -> None:
    """Raise RejectionError when a subset is asked for that does not list the sequence."""
    if config.subset is not None and sequence.name not in listed:
        raise RejectionError(f"not in the set lists of {config.subset}")


def listed_splits(root: StoragePath, category: str, subset: str | None) -> dict[str, frozenset[str]]:
    """The splits that set lists put a sequence's frames into: those of one subset, or of all."""
    subsets = read_set_lists(root, category)
    chosen = subsets.values() if subset is None else [subsets.get(subset, {})]
    names = {name for listed in chosen for name in listed}
    return {name: frozenset().union(*(listed.get(name, frozenset()) for listed in chosen)) for name in names}


def choose_split(sequence: Sequence, listed: frozenset[str], fractions: tuple[float, float, float]) -> str:
    """The split of a whole object: that of the set lists when they hold all its frames in one, else by a hash of its
    name.

    Subsets that test on other frames of the training objects list a sequence in several splits; such lists say nothing
    about objects.
    """
    if len(listed) == 1:
        return next(iter(listed))
    digest = hashlib.sha256(f"{sequence.category}/{sequence.name}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    for split, fraction in zip(SPLITS, fractions, strict=True):
        if share < fraction:
            return split
        share -= fraction
    return SPLITS[max(position for position, fraction in enumerate(fractions) if fraction > 0)]
