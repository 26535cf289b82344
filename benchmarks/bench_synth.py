"""How many synthetic frames one core writes per second: `python -m benchmarks.bench_synth`.

Whole sequences are written (rendering, encoding, annotations, point cloud), in one process. The rate is per second of
processor time, which other work on the machine disturbs less than time on the clock; the clock's rate stands beside it.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.record import table, write
from preprocessing.synthetic.config import SyntheticConfig
from preprocessing.synthetic.dataset import write_sequence
from preprocessing.synthetic.objects import CATEGORIES

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
    header = ["category", "frames/s of processor time", "best sequence", "frames/s on the clock", "bytes a frame"]
    text = (
        f"Short side {CONFIG.image_size} px, {CONFIG.frames_per_sequence} frames a sequence. Required: "
        f"{REQUIRED_FRAMES_PER_SECOND:g}.\n\n" + table(header, [list(row.values()) for row in rows])
    )
    results = {
        "image_size": CONFIG.image_size,
        "frames_per_sequence": CONFIG.frames_per_sequence,
        "required_frames_per_second_core": REQUIRED_FRAMES_PER_SECOND,
        "results": rows,
    }
    write("synth", title="Synthetic frames per second and core", text=text, results=results)


if __name__ == "__main__":
    main()
