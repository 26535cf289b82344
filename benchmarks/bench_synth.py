"""How many synthetic frames one core writes per second: `python -m benchmarks.bench_synth`.

Whole sequences are written (rendering, encoding, annotations, point cloud), in one process. The rate is per second of
processor time, which other work on the machine disturbs less than time on the clock; the clock's rate stands beside it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from preprocessing.config import SyntheticConfig
from preprocessing.procedural import CATEGORIES
from preprocessing.synthetic import write_sequence

REPOSITORY = Path(__file__).resolve().parents[1]
REQUIRED_FRAMES_PER_SECOND = 15.0
CONFIG = SyntheticConfig(categories=CATEGORIES, frames_per_sequence=24, image_size=128)
NUM_SEQUENCES = 5  # one of every image shape


def measure(category: str) -> dict[str, Any]:
    """Frames per second and bytes per frame of one category; the best rate is the one least disturbed by other work."""
    rates, clock_rates = [], []
    with tempfile.TemporaryDirectory() as folder:
        write_sequence(replace(CONFIG, frames_per_sequence=2), Path(folder) / "warm", category, 0)
        for index in range(NUM_SEQUENCES):
            started, clock = time.process_time(), time.perf_counter()
            write_sequence(CONFIG, Path(folder), category, index)
            rates.append(CONFIG.frames_per_sequence / (time.process_time() - started))
            clock_rates.append(CONFIG.frames_per_sequence / (time.perf_counter() - clock))
        files = [path for path in Path(folder, category).rglob("*") if path.is_file()]
        num_bytes = sum(path.stat().st_size for path in files)
    return {
        "category": category,
        "frames_per_second_core": round(sum(rates) / len(rates), 1),
        "best_frames_per_second_core": round(max(rates), 1),
        "frames_per_second_clock": round(sum(clock_rates) / len(clock_rates), 1),
        "bytes_per_frame": round(num_bytes / (NUM_SEQUENCES * CONFIG.frames_per_sequence)),
    }


def main() -> None:
    """Measure every category, print a table, write docs/benchmarks/<date>-synth.{json,md}."""
    rows = [measure(category) for category in CATEGORIES]
    facts = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "image_size": CONFIG.image_size,
        "frames_per_sequence": CONFIG.frames_per_sequence,
        "required_frames_per_second_core": REQUIRED_FRAMES_PER_SECOND,
    }
    text = _markdown(facts, rows)
    folder = REPOSITORY / "docs" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{facts['date']}-synth.json"
    path.write_text(json.dumps({**facts, "results": rows}, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    print(f"written: {path.relative_to(REPOSITORY)} and .md")


def _markdown(facts: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    lines = [
        f"# Synthetic frames per second and core, {facts['date']}",
        "",
        f"{facts['machine']}, Python {facts['python']}, commit {facts['commit']}. Short side {facts['image_size']} px, "
        f"{facts['frames_per_sequence']} frames a sequence. Required: {facts['required_frames_per_second_core']:g}.",
        "",
        "| category | frames/s of processor time | best sequence | frames/s on the clock | bytes a frame |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['category']} | {row['frames_per_second_core']} | {row['best_frames_per_second_core']} "
        f"| {row['frames_per_second_clock']} | {row['bytes_per_frame']} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


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


if __name__ == "__main__":
    main()
