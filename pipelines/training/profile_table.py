"""What a profile says: the dearest operators and the phases of a step."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import profile

from infra.storage.files import atomic_write
from pipelines.training.loop import PHASES

MOST_SHOWN = 10
OUTSIDE = "outside of operators"


class OperatorRow(NamedTuple):
    """All calls of one operator in the profiled steps."""

    name: str
    seconds: float  # of its own, without the operators that it calls
    whole_seconds: float  # with these
    share: float  # of all operators' seconds
    calls: int
    num_bytes: int  # that it took for results, less what it gave back, on the device that trains


def operator_rows(recorded: profile, device: torch.device) -> list[OperatorRow]:
    """Of all operators, the dearest first; what Python and others do between them counts as one more."""
    events, cuda = recorded.key_averages(), device.type == "cuda"
    rows: dict[str, OperatorRow] = {}
    for event in events:
        name = OUTSIDE if event.key in PHASES else event.key
        own = event.self_device_time_total if cuda else event.self_cpu_time_total
        whole = event.device_time_total if cuda else event.cpu_time_total
        num_bytes = event.self_device_memory_usage if cuda else event.self_cpu_memory_usage
        if name == OUTSIDE:
            before = rows.get(OUTSIDE, OperatorRow(OUTSIDE, 0.0, 0.0, 0.0, 0, 0))
            own, num_bytes = own + 1e6 * before.seconds, num_bytes + before.num_bytes
            rows[OUTSIDE] = OperatorRow(OUTSIDE, own / 1e6, own / 1e6, 0.0, 0, num_bytes)
        else:
            rows[name] = OperatorRow(name, own / 1e6, whole / 1e6, 0.0, event.count, num_bytes)
    together = sum(row.seconds for row in rows.values()) or 1.0
    shared = [row._replace(share=row.seconds / together) for row in rows.values()]
    return sorted(shared, key=lambda row: row.seconds, reverse=True)


def describe(rows: Sequence[OperatorRow], phases: Mapping[str, float], *, num_steps: int) -> str:
    """Per step, for a person."""
    lines = [f"{'operator':<40}{'ms a step':>11}{'share':>8}{'with callees':>14}{'calls':>8}{'net MB':>9}"]
    for row in rows[:MOST_SHOWN]:
        own, whole = 1e3 * row.seconds / num_steps, 1e3 * row.whole_seconds / num_steps
        calls, megabytes = row.calls / num_steps, row.num_bytes / num_steps / 1e6
        numbers = f"{own:>11.1f}{row.share:>8.1%}{whole:>14.1f}{calls:>8.0f}{megabytes:>9.1f}"
        lines.append(f"{row.name[:39]:<40}{numbers}")
    together = sum(phases.values()) or 1.0
    lines += ["", f"{'phase':<40}{'ms a step':>11}{'share':>8}"]
    for phase in PHASES:
        seconds = phases.get(phase, 0.0)
        lines.append(f"{phase:<40}{1e3 * seconds / num_steps:>11.1f}{seconds / together:>8.1%}")
    return "\n".join(lines)


def write_tables(folder: Path, rows: Sequence[OperatorRow], phases: Mapping[str, float], *, num_steps: int) -> None:
    """operators.txt, as printed, and profile.json with all operators."""
    atomic_write(folder / "operators.txt", (describe(rows, phases, num_steps=num_steps) + "\n").encode())
    record = {"steps": num_steps, "phase_seconds": dict(phases), "operators": [row._asdict() for row in rows]}
    atomic_write(folder / "profile.json", json.dumps(record, indent=2).encode())
