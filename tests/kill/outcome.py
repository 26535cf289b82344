"""What happened, and the table of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tests.kill.folder import STAGES, State
from tests.kill.schedule import KINDS

FAULTS = ("mismatch", "rewritten", "hang", "end")


@dataclass
class Kill:
    """What was killed, and when."""

    kind: str
    before: State
    moment: float
    resumed: State | None  # what the process that takes over finds; None until it is there
    recovery_seconds: float | None = None  # until it has committed that and something further


@dataclass
class Outcome:
    """Everything that happened."""

    kills: list[Kill] = field(default_factory=list)
    num_runs: int = 0
    num_drivers: int = 0
    num_aborted: int = 0  # drivers that Ray itself ended, because the raylet died while they connected to it
    faults: list[str] = field(default_factory=list)


def table(outcome: Outcome) -> str:
    """What happened, for a person."""
    header = ("killed", "kills", *STAGES, "shards in work", "recovery mean", "max")
    lines = [header]
    for kind in (*KINDS, "all"):
        kills = [kill for kill in outcome.kills if kind in (kill.kind, "all")]
        seconds = [kill.recovery_seconds for kill in kills if kill.recovery_seconds is not None]
        lines.append(
            (
                kind,
                f"{len(kills)}",
                *(f"{sum(kill.before.stage == stage for kill in kills)}" for stage in STAGES),
                f"{sum(bool(kill.before.in_work) for kill in kills)}",
                f"{np.mean(seconds):.1f} s" if seconds else "",
                f"{max(seconds):.1f} s" if seconds else "",
            )
        )
    widths = [max(len(line[column]) for line in lines) + 2 for column in range(len(header))]
    rows = ["".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    counts = {kind: sum(fault.startswith(kind) for fault in outcome.faults) for kind in FAULTS}
    found = ", ".join(f"{kind} {count}" for kind, count in counts.items())
    runs = f"{outcome.num_runs} runs by {outcome.num_drivers} drivers; {found}"
    aborted = f"{outcome.num_aborted} drivers ended by Ray itself, whose raylet died while they connected to it"
    return "\n".join([*rows, runs, aborted, *outcome.faults])
