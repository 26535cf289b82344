"""The formula of a ring against measured all-reduces."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipelines.planning.step_time import Link, ring_seconds


def fit(measured: Mapping[str, Any]) -> Link:
    """α from the smallest message between 2 processes, β from the largest, whose size is nearest to a training's."""
    (small, *_, large), (fast, *_, slow) = measured["sizes"], measured["all_reduce_seconds"]["2"]
    speed = (large - small) / (slow - fast)
    return Link(latency=(fast - small / speed) / 2, speed=speed)


def check_rows(measured: Mapping[str, Any]) -> list[list[object]]:
    """Measured and expected milliseconds by processes and size."""
    link, cores = fit(measured), int(re.findall(r"(\d+) cores", measured["machine"])[0])
    rows: list[list[object]] = []
    for count, times in measured["all_reduce_seconds"].items():
        crowding = max(1.0, int(count) / cores)  # processes share the cores, which do the copying here
        for size, seconds in zip(measured["sizes"], times, strict=True):
            expected = crowding * ring_seconds(size, int(count), link, rounds=2)
            numbers = [f"{1e3 * seconds:.2f}", f"{1e3 * expected:.2f}", f"{expected / seconds - 1:+.0%}"]
            rows.append([f"{size // 1024:,} kB", int(count), *numbers])
    return rows
