"""Training on 8, 64 and 512 GPUs, as far as it can be told from here: `python -m benchmarks.bench_scaling`.

Measured on this machine: what a training step gives to collectives, the loader's rate, and all-reduces of 2 to 4
processes, which the formula is checked with. Everything else is an assumption, and named on the page.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Any
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from benchmarks.bench_loader import loaded, open_batches, rate, written_data
from benchmarks.record import FOLDER, facts, table, write
from benchmarks.scaling_model import Network, Step, Training, predict, ring_seconds
from infra.config import EngineConfig
from infra.engine import BUCKET_ELEMENTS, Engine
from model.cost.flops import total
from model.unet import ViewDiffUNet
from pipelines.network_size import STABLE_DIFFUSION_2_UNET, meta_network
from pipelines.presets import PRESETS
from pipelines.step_cost import latent_size, step_flops, text_length
from tests.distributed.launch import run_distributed

RANKS, PRESETS_SHOWN, BATCH_SIZE, PARTS = (8, 64, 512), ("released", "paper"), 64, 2
PEAK_FLOPS, UTILISATION = 989e12, 0.4  # H100, bfloat16 without sparsity; assumed
NETWORKS = [
    Network(
        name=f"{count} adapter{'s' if count > 1 else ''} per node",
        node_bytes_per_second=450e9,
        adapter_bytes_per_second=50e9,  # 400 Gb/s InfiniBand
        adapters_per_node=count,
        node_latency_seconds=5e-6,
        latency_seconds=10e-6,
    )
    for count in (1, 8)
]
SIZES = tuple(1 << power for power in range(16, 26, 2))  # bytes: 64 kB to 16 MB
PROCESSES, REPETITIONS = (2, 3, 4), 20
WAYS = {  # name -> ZeRO stage and micro-batch
    "ZeRO 1": (1, 1),
    "ZeRO 2, micro-batches of 1": (2, 1),
    "ZeRO 2, micro-batches of 8": (2, 8),
}
HEADER = ["preset", "scaling", "GPUs", "batch", "compute, ms", "step, ms (1 adapter)", "(8)"]
HEADER += ["in collectives (1)", "(8)", "efficiency (1)", "(8)", "samples/s asked of a loader"]
ROUNDS = {"all_reduce": 2, "reduce_scatter_tensor": 1, "all_gather_into_tensor": 1, "reduce": 1}


def preset_flops(name: str) -> float:
    """Useful ones of a preset's step: 64 samples of 5 views and a prior image."""
    config = PRESETS[name]()
    sizes = {"latent_size": latent_size(config), "text_length": text_length(config)}
    return total(step_flops(config.train, meta_network(config), **sizes)).useful


def count_bytes(zero_stage: int) -> torch.Tensor:
    """On each rank: bytes per parameter given to collectives, [backward or step, rounds - 1]."""
    counted: Counter[int] = Counter()

    def counting(name: str, call: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            counted[ROUNDS[name]] += max(tensor.numel() * tensor.element_size() for tensor in tensors)
            return call(*args, **kwargs)

        return wrapped

    patches = [patch.object(dist, name, counting(name, getattr(dist, name))) for name in ROUNDS]
    for each in patches:
        each.start()
    module = nn.Sequential(*(nn.Linear(256, 256) for _ in range(8)))
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    config = EngineConfig(zero_stage=zero_stage)
    engine = Engine(module, {"all": list(module.parameters())}, config, num_steps=2, device=torch.device("cpu"))
    found = torch.zeros(2, 2, dtype=torch.float64)
    for part in (0, 1):
        counted.clear()
        if part:
            engine.step(0, torch.zeros(1, dtype=torch.float64))
        else:
            engine.backward(engine.model(torch.ones(1, 256)).sum())
        for rounds, num_bytes in counted.items():
            found[part, rounds - 1] = num_bytes / num_parameters
    for each in patches:
        each.stop()
    return found


def time_all_reduces() -> list[float]:
    """On each rank: the fastest of many all-reduces of each of `SIZES`, seconds. The fastest, because other programs
    on the machine only ever make it slower.
    """
    seconds = []
    for size in SIZES:
        tensor, taken = torch.ones(size // 4), []
        for _ in range(REPETITIONS):
            dist.barrier()
            started = time.perf_counter()
            dist.all_reduce(tensor)
            taken.append(time.perf_counter() - started)
        seconds.append(min(taken))
    return seconds


def fit(seconds: list[float], num_ranks: int) -> tuple[float, float]:
    """(α in seconds, β in bytes a second) for which the ring's formula is closest, in relative terms."""
    terms = [[ring_seconds(0, num_ranks, 1.0, 1.0, rounds=2), 2 * (num_ranks - 1) / num_ranks * size] for size in SIZES]
    rows = np.array(terms) / np.array(seconds)[:, None]
    (latency, per_byte), *_ = np.linalg.lstsq(rows, np.ones(len(SIZES)), rcond=None)
    return float(latency), float(1 / per_byte)


def measure_loader() -> float:
    """Samples a second of one process, with embeddings and a prior image each."""
    torch.set_num_threads(1)
    with written_data() as folder:
        return max(rate(loaded(open_batches(folder))) for _ in range(3))


def describe(name: str, volume: torch.Tensor, *, micro_batch_size: int) -> Training:
    """A preset's training."""
    network = ViewDiffUNet.meta(STABLE_DIFFUSION_2_UNET, PRESETS[name]().train.model)
    backward, step = ({rounds: each for rounds, each in enumerate(part, start=1) if each} for part in volume.tolist())
    return Training(
        name=name,
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        sample_flops=preset_flops(name) / BATCH_SIZE,
        micro_batch_size=micro_batch_size,
        passes=PARTS,
        backward_bytes=backward,
        step_bytes=step,
        bucket_bytes=4 * BUCKET_ELEMENTS,
    )


def steps_of(training: Training, network: Network, *, weak: bool) -> list[Step]:
    """At `RANKS`, with a batch of 64 or with one of 8 samples per rank; without those with fewer samples than ranks."""
    sizes = [8 * ranks if weak else BATCH_SIZE for ranks in RANKS]
    flops = PEAK_FLOPS * UTILISATION
    return [
        predict(training, network, num_ranks=ranks, batch_size=size, rank_flops=flops)
        for ranks, size in zip(RANKS, sizes, strict=True)
        if size >= ranks
    ]


def projection(volumes: dict[int, torch.Tensor], supply: float) -> tuple[list[list[object]], dict[str, list[Step]]]:
    """Rows of the table, and the curves of the plot by label."""
    rows, curves = [], dict[str, list[Step]]()
    for name in PRESETS_SHOWN:
        for weak in (False, True):
            for way, (zero_stage, micro_batch_size) in WAYS.items():
                training = describe(name, volumes[zero_stage], micro_batch_size=micro_batch_size)
                columns = [steps_of(training, network, weak=weak) for network in NETWORKS]
                kind = f"{'weak' if weak else 'strong'}, {way}"
                curves |= {f"{name}, {kind}, {n.name}": c for n, c in zip(NETWORKS, columns, strict=True)}
                for one, eight in zip(*columns, strict=True):
                    rows.append(
                        [
                            name,
                            kind,
                            one.num_ranks,
                            one.batch_size,
                            f"{1e3 * one.compute_seconds:.0f}",
                            *(f"{1e3 * step.seconds:.0f}" for step in (one, eight)),
                            *(f"{step.communication_seconds / step.seconds:.0%}" for step in (one, eight)),
                            *(f"{step.efficiency:.0%}" for step in (one, eight)),
                            f"{eight.samples_per_rank_second:.0f} of {supply:,.0f}",
                        ]
                    )
    return rows, curves


def plot(curves: dict[str, list[Step]]) -> str:
    """Efficiency against ranks. Returns the picture's name."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, constrained_layout=True)
    for place, kind in zip(axes, ("strong", "weak"), strict=True):
        shown = {label: steps for label, steps in curves.items() if f"released, {kind}" in label}
        for label, steps in shown.items():
            style = "--" if "1 adapter " in label else "-"
            color = next(f"C{number}" for number, way in enumerate(WAYS) if way in label)
            name = label.removeprefix(f"released, {kind}, ")
            ranks, efficiency = [s.num_ranks for s in steps], [100 * s.efficiency for s in steps]
            place.plot(ranks, efficiency, style, marker="o", color=color, label=name)
        place.set(xscale="log", xlabel="GPUs", xticks=RANKS, xticklabels=RANKS, xlim=(6, 700), ylim=(0, 100))
        place.set_title("64 samples a step" if kind == "strong" else "8 samples per GPU")
        place.minorticks_off()
        place.grid(alpha=0.3)
    axes[0].set_ylabel("efficiency of `released`, %")
    axes[0].legend(loc="upper right", fontsize="small")  # there are no curves
    picture = f"{facts()['date']}-scaling.png"
    figure.savefig(FOLDER / picture, dpi=110)
    return picture


def compare(times: dict[int, list[float]]) -> tuple[list[list[object]], float, float]:
    """Rows of the table of measured all-reduces against the formula, and the α and β of 2 processes."""
    latency, speed = fit(times[2], 2)
    rows = []
    for count in PROCESSES:
        crowding = max(1.0, count / (os.cpu_count() or 1))  # processes share the cores, which do the copying here
        for size, seconds in zip(SIZES, times[count], strict=True):
            expected = crowding * ring_seconds(size, count, latency, speed, rounds=2)
            numbers = [f"{1e3 * seconds:.2f}", f"{1e3 * expected:.2f}", f"{expected / seconds - 1:+.0%}"]
            rows.append([f"{size // 1024:,} kB", count, *numbers])
    return rows, latency, speed


def count_text(volume: torch.Tensor) -> str:
    """What `count_bytes` found, in words."""
    (passing, reduced), (gathered, summed) = volume.tolist()
    return (
        f"all-reduces {reduced:.1f} and reduces {passing:.1f} in each backward pass, gathers {gathered:.1f} and "
        f"all-reduces {summed:.2f} in each step"
    )


def main() -> None:
    """Measure, project, write docs/benchmarks/<date>-scaling.{json,md,png}."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    volumes = {stage: run_distributed(count_bytes, 2, stage)[0] for stage in {stage for stage, _ in WAYS.values()}}
    times = {count: run_distributed(time_all_reduces, count)[0] for count in PROCESSES}
    supply = measure_loader()
    checks, latency, speed = compare(times)
    rows, curves = projection(volumes, supply)
    flops = ", ".join(f"{preset_flops(name) / 1e12:.0f} TFLOP in 64 samples of `{name}`" for name in PRESETS_SHOWN)
    sizes = {name: describe(name, volumes[1], micro_batch_size=1).num_parameters for name in PRESETS_SHOWN}
    counts = "; ".join(f"ZeRO {stage} {count_text(volume)}" for stage, volume in sorted(volumes.items()))
    parameters = ", ".join(f"`{name}` has {size / 1e6:,.0f} M parameters" for name, size in sizes.items())
    text = f"""Assumed: H100 with {PEAK_FLOPS / 1e12:.0f} TFLOP/s of which {UTILISATION:.0%} are reached; {flops};
8 GPUs a node; NVLink 450 GB/s and 5 µs, 400 Gb/s and 10 µs per adapter between nodes; rings through all GPUs, which do
not overlap with arithmetic.

Counted: {parameters}. Bytes per parameter that collectives are given: {counts}. There is a backward pass for each
micro-batch and part of the objective. Measured: a loader process gives {supply:,.0f} samples a second.

{table(HEADER, rows)}
Fixed batches of 64 samples end at 64 GPUs: a GPU cannot have less than one sample.

All-reduce of gloo here against the formula, with α = {1e6 * latency:.0f} µs and β = {speed / 1e9:.2f} GB/s as fitted to
2 processes; the fastest of {REPETITIONS}. More processes than cores take turns on them, and the formula is multiplied
by how many there are per core:

{table(["size", "processes", "measured, ms", "formula, ms", "difference"], checks)}
![Efficiency]({plot(curves)})"""
    counted = {stage: volume.tolist() for stage, volume in volumes.items()}
    results = {"bytes_per_parameter": counted, "all_reduce_seconds": times, "sizes": SIZES, "loader": supply}
    write("scaling", title="Scaling, projected", text=text, results=results | {"rows": rows})


if __name__ == "__main__":
    main()
