"""What retraining goes on from, and what is a reason for it: pure functions of captures and of registered versions."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from infra.tracking.registry import RegisteredVersion
from pipelines.operations.champion import CAPTURES_TAG, REFUSED_TAG, recorded_decision, rival_of


@dataclass(frozen=True)
class Captures:
    """Numbers of sequences by category."""

    usable: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)

    def has(self, category: str) -> bool:
        """Whether a sequence of it is usable."""
        return self.usable.get(category, 0) > 0

    def total(self, category: str) -> int:
        """All sequences of a category."""
        return self.usable.get(category, 0) + self.refused.get(category, 0)

    def __or__(self, other: Captures) -> Captures:
        """Both; of a category in both the numbers of `other`."""
        return Captures({**self.usable, **other.usable}, {**self.refused, **other.refused})


@dataclass(frozen=True)
class RetrainingPlan:
    """What retraining would do, and why."""

    new_categories: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def train(self) -> bool:
        """Whether there is anything to train."""
        return bool(self.new_categories)


def plan_retraining(captures: Captures, tried: Captures) -> RetrainingPlan:
    """Compare captures with those that the champion and its challengers were trained on.

    Only a new category of which a sequence is usable is a reason to train; everything else that is new is reported.
    """
    new, reasons = list[str](), list[str]()
    for category in sorted(captures.usable.keys() | captures.refused.keys()):
        count, before = captures.total(category), tried.total(category)
        if tried.has(category):
            if count != before:
                reasons.append(f"category {category!r} has {count} sequences, there were {before} in the training")
        elif captures.has(category):
            new.append(category)
            reasons.append(f"category {category!r} is new: {captures.usable[category]} sequences")
        else:
            reasons.append(
                f"category {category!r} is new, but none of its {count} sequences is usable; mend them, or relax the "
                "settings of preprocess"
            )
    return RetrainingPlan(tuple(new), tuple(reasons or ["all of these captures were trained on"]))


def missing_categories(captures: Captures, trained: Captures, given_up: Collection[str]) -> tuple[str, ...]:
    """Categories that the champion was trained on and would forget: no capture of them is usable."""
    known = (category for category in sorted(trained.usable) if trained.has(category))
    return tuple(category for category in known if not captures.has(category) and category not in given_up)


def last_decided(champion: RegisteredVersion, versions: Sequence[RegisteredVersion]) -> RegisteredVersion:
    """The champion, or the version that it replaced while that is not recorded yet."""
    return champion if recorded_decision(champion) else rival_of(champion, versions) or champion


def captures_of(version: RegisteredVersion) -> Captures:
    """What a version was trained on."""
    return Captures(*(json.loads(version.tags.get(tag, "{}")) for tag in (CAPTURES_TAG, REFUSED_TAG)))


def tried_since(start: RegisteredVersion, versions: Sequence[RegisteredVersion]) -> Captures:
    """What a version was trained on, and those after it about which something was decided: a category that was tried
    and did not make a better model is not tried again every night. An interrupted registration counts for nothing.
    """
    tried = Captures()
    for version in versions:
        if version.version > start.version and recorded_decision(version):
            tried |= captures_of(version)
    return tried | captures_of(start)
