"""Memory of a task that writes a shard, by frames of a sequence: `python -m benchmarks.bench_preprocess_memory`.

Each row is a process of its own that writes one sequence of 2-megapixel photos with masks, stored at 256 × 256: what it
holds after its imports, and how far its peak is above that. Of a sequence only the encoded pictures may stay in memory,
since a tar member's sample is written as a whole; decoded ones must not.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import ray.data  # noqa: F401 part of what a worker holds
import torch

from benchmarks.bench_preprocess import IMAGE_SIZE, SIZE, make_captures
from benchmarks.record import peak_resident_bytes, resident_bytes, restart_peak, table, write
from preprocessing.config import PreprocessConfig
from preprocessing.shards.planning import plan_shards
from preprocessing.shards.writing import write_shard

NUM_FRAMES = (25, 50, 100, 200, 400)
CHECKS = {"default": None, "epipolar check": 1e3}  # settings of maximum_epipolar_pixels; no photo is that far off


def measure(root: Path, folder: Path, maximum_epipolar_pixels: float | None) -> dict[str, int]:
    """In this process: bytes after the imports, how far the peak is above them, and bytes of the shard."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    config = PreprocessConfig(
        image_size=IMAGE_SIZE, sequences_per_shard=1, maximum_epipolar_pixels=maximum_epipolar_pixels
    )
    (task,) = plan_shards(root, config).tasks
    before = resident_bytes()
    restart_peak()
    record = write_shard(task, root, folder, config)
    assert record.num_frames == len(task.sequences[0].sequence.frames), record.rejected
    return {"before": before, "above": peak_resident_bytes() - before, "shard": record.num_bytes}


def measure_apart(num_frames: int, maximum_epipolar_pixels: float | None) -> dict[str, int]:
    """The same in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder) / "raw", Path(folder) / "out"
        root.mkdir()
        out.mkdir()
        make_captures(root, 1, num_frames=num_frames)
        arguments = json.dumps([str(root), str(out), maximum_epipolar_pixels])
        command = [sys.executable, "-m", "benchmarks.bench_preprocess_memory", arguments]
        return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def slope(values: list[int]) -> float:
    """Bytes per frame of a straight line through values at NUM_FRAMES."""
    return float(np.polyfit(NUM_FRAMES, values, 1)[0])


def main() -> None:
    """Measure, print, write docs/benchmarks/<date>-preprocess-memory.{json,md}."""
    if len(sys.argv) > 1:
        root, folder, limit = json.loads(sys.argv[1])
        print(json.dumps(measure(Path(root), Path(folder), limit)))
        return
    results = {name: [measure_apart(count, limit) for count in NUM_FRAMES] for name, limit in CHECKS.items()}
    text = [
        f"One sequence of {SIZE[0]} × {SIZE[1]} photos with masks, stored at {IMAGE_SIZE}², one process each, MB:\n"
    ]
    for name, found in results.items():
        rows = [
            [count, *(f"{row[key] / 1e6:.1f}" for key in ("before", "above", "shard")), f"{_need(row) / 1e6:.0f}"]
            for count, row in zip(NUM_FRAMES, found, strict=True)
        ]
        above, shard = (slope([row[key] for row in found]) / 1e3 for key in ("above", "shard"))
        text += [
            f"{name}: {above:.0f} kB more a frame, of which {shard:.0f} kB are its encoded picture and mask.\n",
            table(["frames", "after the imports", "peak above that", "shard", "a task needs"], rows),
        ]
    write("preprocess-memory", title="Memory of preprocessing", text="\n".join(text), results=results)


def _need(row: dict[str, int]) -> int:
    return row["before"] + row["above"]


if __name__ == "__main__":
    main()
