"""Which process is killed when: a pure function of a seed and of how long an undisturbed run takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KINDS = ("writer", "raylet", "driver")
MOST_KILLS_PER_RUN = 4
COMMIT_PERIOD = 4  # every fourth driver dies while it commits the folder
EARLY_SHARE = 1 / 8  # of kills come before the first shard
MOST_DELAY_SECONDS = 0.1  # from a shard's commit to the kill; a shard takes about as long


@dataclass(frozen=True)
class Pace:
    """Seconds of an undisturbed run: from its start to the first shard, and from the last shard to the end."""

    start_seconds: float
    commit_seconds: float


@dataclass(frozen=True)
class Goal:
    """A kill to come: so long after so many shards are committed, or all are."""

    kind: str
    num_committed: int
    in_commit: bool
    delay_seconds: float


def plan_kills(num_kills: int, num_shards: int, pace: Pace, random: np.random.Generator) -> list[Goal]:
    """As many of each kind, in random order."""
    goals = []
    for number in range(num_kills):
        kind, round_ = KINDS[number % len(KINDS)], number // len(KINDS)
        in_commit = kind == "driver" and round_ % COMMIT_PERIOD == COMMIT_PERIOD - 1
        early = random.uniform() < EARLY_SHARE
        after = 0 if early else int(random.integers(1, num_shards))
        goals.append(
            Goal(kind, num_shards if in_commit else after, in_commit, _delay(kind, after, in_commit, pace, random))
        )
    return [goals[position] for position in random.permutation(num_kills)]


def next_run(waiting: list[Goal], random: np.random.Generator) -> list[Goal]:
    """Take the kills of one run off those that wait, in the order in which they come."""
    count = int(random.integers(1, MOST_KILLS_PER_RUN + 1))
    taken, waiting[:] = waiting[:count], waiting[count:]
    return sorted(taken, key=lambda goal: goal.num_committed)


def _delay(kind: str, after: int, in_commit: bool, pace: Pace, random: np.random.Generator) -> float:
    if in_commit:
        longest = pace.commit_seconds
    elif after:
        longest = MOST_DELAY_SECONDS
    else:
        # The raylet is there after half of the start, and a writer only when a shard is in work.
        longest = {"driver": pace.start_seconds, "raylet": pace.start_seconds / 2, "writer": 0.0}[kind]
    return float(random.uniform(0, longest))
