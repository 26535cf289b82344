"""Unproject + aggregate: time and memory against the plain version: `python -m benchmarks.bench_volume`.

Times are of forward passes, both sides in turns. Peak memory is that of a process of its own for each figure, over what
it held before the call.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from benchmarks.record import (
    FOLDER,
    facts,
    median_seconds,
    median_seconds_side_by_side,
    peak_resident_bytes,
    resident_bytes,
    restart_peak,
    table,
    write,
)
from model.cost.volumes import aggregation_flops
from model.volume.filling import ViewAggregator, VoxelProjections, project_voxels
from model.volume.kernels.selection import Version, use
from tests.support.factories import look_at_cameras

CHANNELS, TIMESTEP_CHANNELS, FEATURE_SIZE = 16, 1280, (16, 16)
NUM_VIEWS = 4
GRID_SIZES, TARGETS = (32, 64, 128), {32: 2.0, 64: 5.0, 128: 6.0}
MEMORY_GRID_SIZE = 64
MEMORY_GRID_SIZES = (32, 48, 64, 80)
VIEW_COUNTS = (2, 4, 6, 8)
# A pair's bilinear sample of its features, which the FLOP model leaves out.
SAMPLE_FLOPS = 2 * 5 * CHANNELS


class Case(NamedTuple):
    """Arguments of `ViewAggregator.forward`."""

    features: Tensor
    voxels: VoxelProjections
    timestep_embedding: Tensor

    @property
    def num_pairs(self) -> int:
        return int((self.voxels.depth > 0).sum())

    @property
    def flops(self) -> int:
        of_pair, of_voxel = aggregation_flops(ViewAggregator(CHANNELS, TIMESTEP_CHANNELS))
        return round((of_pair + SAMPLE_FLOPS) * self.num_pairs + of_voxel * self.voxels.depth.shape[-1])


def make_case(grid_size: int, num_views: int) -> Case:
    """Cameras around the scene, with a background."""
    cameras = look_at_cameras(1, num_views, image_size=FEATURE_SIZE)
    bounds = torch.tensor([[[-1.0] * 3, [1.0] * 3]])
    voxels = project_voxels(cameras, bounds, grid_size=grid_size, foreground_fraction=0.5).resize(FEATURE_SIZE)
    return Case(
        torch.randn(1, num_views, CHANNELS, *FEATURE_SIZE), voxels, torch.randn(1, num_views, TIMESTEP_CHANNELS)
    )


def forward(version: Version, aggregator: ViewAggregator, case: Case) -> Tensor:
    with use(version):
        return aggregator(*case)


@torch.no_grad()
def compare_times(num_threads: int) -> list[dict[str, Any]]:
    """Plain against tiled at every grid size."""
    rows, aggregator = [], ViewAggregator(CHANNELS, TIMESTEP_CHANNELS)
    torch.set_num_threads(num_threads)
    for grid_size in GRID_SIZES:
        case = make_case(grid_size, NUM_VIEWS)
        plain, tiled = median_seconds_side_by_side(
            [lambda: forward("plain", aggregator, case), lambda: forward("tiled", aggregator, case)]  # noqa: B023
        )
        rows.append(
            {"grid_size": grid_size, "threads": num_threads, "plain": plain, "tiled": tiled, "ratio": plain / tiled}
        )
        print(rows[-1], flush=True)
    return rows


@torch.no_grad()
def times_against_flops() -> list[dict[str, Any]]:
    """Seconds of the tiled version on one thread against views and voxels, and what FLOPs say at one rate for all."""
    torch.set_num_threads(1)
    aggregator, rows = ViewAggregator(CHANNELS, TIMESTEP_CHANNELS), []
    for grid_size, num_views in [(48, 4), (64, 2), (64, 4), (64, 6), (64, 8), (96, 4)]:
        case = make_case(grid_size, num_views)
        seconds = median_seconds(lambda: forward("tiled", aggregator, case))  # noqa: B023
        rows.append(
            {
                "grid_size": grid_size,
                "views": num_views,
                "pairs": case.num_pairs,
                "seconds": seconds,
                "flops": case.flops,
            }
        )
    rate = sum(row["flops"] for row in rows) / sum(row["seconds"] for row in rows)
    return [row | {"of_model": row["seconds"] * rate / row["flops"]} for row in rows]


def peak_bytes(version: Version, grid_size: int, num_views: int) -> int:
    """Peak memory of geometry, one forward and backward pass, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_volume", "--peak", version, str(grid_size), str(num_views)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def _print_peak(version: Version, grid_size: int, num_views: int) -> None:
    aggregator = ViewAggregator(CHANNELS, TIMESTEP_CHANNELS)
    small = make_case(8, num_views)
    forward(version, aggregator, small).sum().backward()  # what PyTorch loads once
    restart_peak()
    before = resident_bytes()
    case = make_case(grid_size, num_views)
    case.features.requires_grad_()
    forward(version, aggregator, case).sum().backward()
    print(peak_resident_bytes() - before)


def plot(
    times: list[dict[str, Any]], model: list[dict[str, Any]], views: dict[str, list[int]], voxels: dict[str, list[int]]
) -> str:
    """Write the picture; returns its file name."""
    figure, ((a, b), (c, d)) = plt.subplots(2, 2, figsize=(10, 7), constrained_layout=True)
    one = [row for row in times if row["threads"] == 1]
    for name in ("plain", "tiled"):
        a.loglog([row["grid_size"] ** 3 for row in one], [row[name] for row in one], "o-", label=name)
        c.plot(VIEW_COUNTS, [num_bytes / 1e9 for num_bytes in views[name]], "o-", label=name)
        d.plot(
            [size**3 for size in MEMORY_GRID_SIZES], [num_bytes / 1e9 for num_bytes in voxels[name]], "o-", label=name
        )
    rate = sum(row["flops"] for row in model) / sum(row["seconds"] for row in model)
    at_size = [row for row in model if row["grid_size"] == MEMORY_GRID_SIZE]
    b.plot([row["views"] for row in at_size], [row["seconds"] for row in at_size], "o", label="tiled")
    b.plot(
        [row["views"] for row in at_size], [row["flops"] / rate for row in at_size], "-", label="its FLOPs, one rate"
    )
    a.set(title=f"Forward, {NUM_VIEWS} views, one thread", xlabel="voxels", ylabel="seconds")
    b.set(title=f"Forward, {MEMORY_GRID_SIZE}³, one thread", xlabel="views", ylabel="seconds", ylim=(0, None))
    c.set(title=f"Forward + backward, {MEMORY_GRID_SIZE}³", xlabel="views", ylabel="peak memory, GB")
    d.set(title=f"Forward + backward, {NUM_VIEWS} views", xlabel="voxels", ylabel="peak memory, GB")
    for axes in (a, b, c, d):
        axes.legend()
        axes.grid(alpha=0.3)
    name = f"{facts()['date']}-volume.png"
    figure.savefig(FOLDER / name, dpi=110)
    return name


def _times(times: list[dict[str, Any]]) -> str:
    rows = [
        [
            f"{row['grid_size']}³",
            row["threads"],
            f"{row['plain']:.3f}",
            f"{row['tiled']:.3f}",
            f"{row['ratio']:.1f}×",
            f"{TARGETS[row['grid_size']]:g}×",
        ]
        for row in times
    ]
    size = f"{FEATURE_SIZE[0]} × {FEATURE_SIZE[1]}"
    head = f"{CHANNELS} channels, {size} features, {NUM_VIEWS} views, with a background.\n\n"
    return head + table(["voxels", "threads", "plain, s", "tiled, s", "faster", "target"], rows)


def _memory(views: dict[str, list[int]], voxels: dict[str, list[int]]) -> str:
    per_view = {name: (peaks[-1] - peaks[0]) / (VIEW_COUNTS[-1] - VIEW_COUNTS[0]) for name, peaks in views.items()}
    place = VIEW_COUNTS.index(NUM_VIEWS)
    ratio = views["plain"][place] / views["tiled"][place]
    head = (
        f"Peak memory of geometry, forward and backward at {MEMORY_GRID_SIZE}³, {NUM_VIEWS} views: {ratio:.1f}× less "
        f"(target 9×). Per added view {per_view['plain'] / 1e6:.0f} MB plain, {per_view['tiled'] / 1e6:.1f} MB tiled "
        "(target 5; a tile has fewer voxels when there are more views, so its own memory falls).\n\n"
    )

    def rows(memory: dict[str, list[int]]) -> list[list[str]]:
        return [[name, *(f"{num_bytes / 1e6:.0f} MB" for num_bytes in peaks)] for name, peaks in memory.items()]

    by_voxels = table([f"voxels, {NUM_VIEWS} views", *(f"{size}³" for size in MEMORY_GRID_SIZES)], rows(voxels))
    return head + table([f"views, {MEMORY_GRID_SIZE}³", *map(str, VIEW_COUNTS)], rows(views)) + "\n" + by_voxels


def _flops(model: list[dict[str, Any]]) -> str:
    head = "One thread's time against the FLOPs of valid pairs and voxels, at one rate (target: within 15 %):\n\n"
    rows = [
        [f"{row['grid_size']}³", row["views"], row["pairs"], f"{row['seconds']:.3f}", f"{row['of_model']:.2f}"]
        for row in model
    ]
    return head + table(["voxels", "views", "valid pairs", "seconds", "of the FLOP model"], rows)


def main() -> None:
    """Measure, print, write docs/benchmarks/<date>-volume.{json,md,png}."""
    if sys.argv[1:2] == ["--peak"]:
        version: Any = sys.argv[2]
        _print_peak(version, int(sys.argv[3]), int(sys.argv[4]))
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    times = [row for number in sorted({1, threads}) for row in compare_times(number)]
    model = times_against_flops()
    views: dict[str, list[int]] = {}
    voxels: dict[str, list[int]] = {}
    for version in ("plain", "tiled"):
        views[version] = [peak_bytes(version, MEMORY_GRID_SIZE, num_views) for num_views in VIEW_COUNTS]
        voxels[version] = [peak_bytes(version, grid_size, NUM_VIEWS) for grid_size in MEMORY_GRID_SIZES]
    picture = plot(times, model, views, voxels)
    text = "\n".join([_times(times), _memory(views, voxels), _flops(model), f"![Time and memory]({picture})"])
    results = {"times": times, "flop_model": model, "peak_bytes_by_views": views, "peak_bytes_by_voxels": voxels}
    write("volume", title="Unproject and aggregate", text=text, results=results)


if __name__ == "__main__":
    main()
