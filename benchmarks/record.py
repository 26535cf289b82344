"""What all benchmarks share: facts about the machine, repeated timing, and files in docs/benchmarks/."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "docs" / "benchmarks"
REPETITIONS = 5


def facts() -> dict[str, Any]:
    """Date, commit, machine and versions."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def median_seconds(call: Callable[[], object], *, repetitions: int = REPETITIONS) -> float:
    """Median time of a call after one to warm up."""
    call()
    seconds = []
    for _ in range(repetitions):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def median_seconds_side_by_side(
    calls: Sequence[Callable[[], object]], *, repetitions: int = REPETITIONS
) -> list[float]:
    """The same for several calls in turns, so that what else the machine does disturbs all of them alike."""
    seconds: list[list[float]] = [[] for _ in calls]
    for repetition in range(repetitions + 1):
        for taken, call in zip(seconds, calls, strict=True):
            started = time.perf_counter()
            call()
            if repetition:  # the first turn warms up
                taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in seconds]


def resident_bytes() -> int:
    """Memory that this process holds now (Linux)."""
    return _status("VmRSS")


def peak_resident_bytes() -> int:
    """The most that it has held, since its start or `restart_peak`."""
    return _status("VmHWM")


def restart_peak() -> None:
    """Let the kernel's record of the peak start again from here."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def render(*, title: str, text: str, known: Mapping[str, Any]) -> str:
    """A page whose measurements were made when and where `known` says, see `facts`."""
    machine = f"{known['machine']}, Python {known['python']}, torch {known['torch']}, commit {known['commit']}."
    return f"# {title}, {known['date']}\n\n{machine}\n\n{text.strip()}\n"


def write(name: str, *, title: str, text: str, results: dict[str, Any]) -> None:
    """Print the page and write docs/benchmarks/<date>-<name>.md and .json."""
    known = facts()
    page = render(title=title, text=text, known=known)
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{known['date']}-{name}.json"
    path.write_text(json.dumps({**known, **results}, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)
    print(f"written: {path.relative_to(REPOSITORY)} and .md", flush=True)


def _commit() -> str:
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    """The processor's model as Linux names it, elsewhere what Python knows."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.machine()
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()
