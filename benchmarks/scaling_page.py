"""Training on 8, 64 and 512 GPUs, projected from what was measured: `python -m benchmarks.scaling_page`.

Reads the newest docs/benchmarks/*-scaling.json, which benchmarks/bench_scaling.py writes, and computes the rest by the
model of `viewdiff plan`: the same on every machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt

from benchmarks.record import FOLDER, render, table
from benchmarks.scaling_check import check_rows, fit
from model.cost.flops import Flops, total
from model.unet import ViewDiffUNet
from pipelines.planning.gpus import choose_gpu
from pipelines.planning.memory import FLOAT32, GB
from pipelines.planning.network import count_parameters, meta_network
from pipelines.planning.step_time import (
    GPUS_PER_MACHINE,
    LATENCY_BETWEEN,
    LATENCY_INSIDE,
    StepTime,
    collectives,
    step_time,
)
from pipelines.planning.step_work import latent_size, step_flops, text_length
from pipelines.settings.commands import SizingConfig
from pipelines.settings.presets import PRESETS
from pipelines.settings.run import RunConfig

GPUS, PRESETS_SHOWN, BATCH_SIZE, WEAK_SHARE = (8, 64, 512), ("released", "paper"), 64, 8
GPU = choose_gpu(80, "h100")
UTILISATION = SizingConfig().utilisation
ADAPTERS = {"1 adapter": 400.0, "8 adapters": 3200.0}  # of a machine, Gb/s together
WAYS = {  # name -> ZeRO stage and micro-batch
    "ZeRO 1": (1, 1),
    "ZeRO 2, micro-batches of 1": (2, 1),
    "ZeRO 2, micro-batches of 8": (2, 8),
}
HEADER = ["preset", "scaling", "GPUs", "batch", "computing, ms", "step, ms (1 adapter)", "(8)"]
HEADER += ["in collectives (1)", "(8)", "efficiency (1)", "(8)", "samples/s asked of a loader"]


class Step(NamedTuple):
    """One projected step."""

    gpus: int
    batch_size: int
    time: StepTime

    @property
    def efficiency(self) -> float:
        """Against one GPU that does its share of the batch alone."""
        return self.time.computing / self.time.seconds


def projected(name: str, way: str, network_gigabits: float, *, weak: bool) -> list[Step]:
    """Of a preset on `GPUS`, with a batch of 64 or with 8 samples a GPU; without those with fewer samples than GPUs."""
    sizes = {gpus: WEAK_SHARE * gpus if weak else BATCH_SIZE for gpus in GPUS}
    return [_step(name, way, gpus, size, network_gigabits) for gpus, size in sizes.items() if size >= gpus]


def _step(name: str, way: str, gpus: int, batch_size: int, network_gigabits: float) -> Step:
    (zero_stage, micro_batch_size), config = WAYS[way], PRESETS[name]()
    engine = replace(config.train.engine, zero_stage=zero_stage)
    train = replace(config.train, engine=engine, batch_size=batch_size, micro_batch_size=micro_batch_size)
    config = replace(config, train=train)
    sizing = SizingConfig(gpus=gpus, gpu=GPU.name, network_gigabits=network_gigabits)
    return Step(gpus, batch_size, step_time(config, _flops(config), GPU, sizing))


def _flops(config: RunConfig) -> dict[str, Flops]:
    sizes = {"latent_size": latent_size(config), "text_length": text_length(config)}
    return step_flops(config.train, _network(config.name), **sizes)


@cache
def _network(name: str) -> ViewDiffUNet:
    return meta_network(PRESETS[name]())


def rows(supply: float) -> list[list[object]]:
    """Of the whole table; `supply` is a loader's rate."""
    found: list[list[object]] = []
    for name in PRESETS_SHOWN:
        for weak in (False, True):
            for way in WAYS:
                columns = [projected(name, way, gigabits, weak=weak) for gigabits in ADAPTERS.values()]
                kind = f"{'weak' if weak else 'strong'}, {way}"
                found += [[name, kind, *_cells(each, supply)] for each in zip(*columns, strict=True)]
    return found


def _cells(steps: Sequence[Step], supply: float) -> list[object]:
    """`steps` differ in adapters only."""
    first, last = steps[0], steps[-1]
    asked = last.batch_size / last.gpus / last.time.seconds
    return [
        first.gpus,
        first.batch_size,
        f"{1e3 * first.time.computing:.0f}",
        *(f"{1e3 * step.time.seconds:.0f}" for step in steps),
        *(f"{step.time.sending / step.time.seconds:.0%}" for step in steps),
        *(f"{step.efficiency:.0%}" for step in steps),
        f"{asked:.0f} of {supply:,.0f}",
    ]


def summary() -> str:
    """The table of docs/scaling.md: efficiency of `released`, with 1 and with 8 adapters."""
    lines: list[list[object]] = []
    for weak in (False, True):
        for way in WAYS:
            both = [projected("released", way, gigabits, weak=weak) for gigabits in ADAPTERS.values()]
            batch = f"{WEAK_SHARE} samples per GPU" if weak else f"{BATCH_SIZE} samples a step"
            cells = [_range(each) for each in zip(*both, strict=True)]
            missing = ["needs 512 samples"] * (len(GPUS) - len(cells))
            lines.append([f"{batch}, {way}", *cells, *missing])
    peak, header = f"{GPU.bfloat16 / 1e12:g} TFLOP/s", ["8 GPUs, one machine", "64 GPUs", "512 GPUs"]
    return table([f"`released`, {UTILISATION:.0%} of {peak} ({GPU.float32 / 1e12:g} for volumes)", *header], lines)


def _range(steps: Sequence[Step]) -> str:
    """Efficiency with few adapters to that with many; one figure where they make no difference."""
    return "–".join(dict.fromkeys(f"{100 * step.efficiency:.0f}" for step in steps)) + " %"


def plot(path: Path) -> None:
    """Efficiency against GPUs."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, constrained_layout=True)
    for place, weak in zip(axes, (False, True), strict=True):
        for number, way in enumerate(WAYS):
            for adapters, gigabits in ADAPTERS.items():
                steps, style = projected("released", way, gigabits, weak=weak), "--" if gigabits == 400 else "-"
                efficiency, label = [100 * step.efficiency for step in steps], f"{way}, {adapters} a machine"
                place.plot([s.gpus for s in steps], efficiency, style, marker="o", color=f"C{number}", label=label)
        place.set(xscale="log", xlabel="GPUs", xticks=GPUS, xticklabels=GPUS, xlim=(6, 700), ylim=(0, 100))
        place.set_title(f"{WEAK_SHARE} samples per GPU" if weak else f"{BATCH_SIZE} samples a step")
        place.minorticks_off()
        place.grid(alpha=0.3)
    axes[0].set_ylabel("efficiency of `released`, %")
    axes[0].legend(loc="upper right", fontsize="small")  # there are no curves
    figure.savefig(path, dpi=110)


def counted_bytes(measured: Mapping[str, Any]) -> str:
    """What a step gives to collectives per parameter, in words; it must be what the model says."""
    lines = []
    for stage, ((passing, reduced), (gathered, summed)) in sorted(measured["bytes_per_parameter"].items()):
        config = PRESETS["released"]()
        engine = replace(config.train.engine, zero_stage=int(stage))
        train = replace(config.train, engine=engine, micro_batch_size=BATCH_SIZE)
        passes, (sums, gathers) = 2, collectives(replace(config, train=train), 1)
        found, expected = (passes * reduced + summed, passes * passing + gathered), (sums * FLOAT32, gathers * FLOAT32)
        assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 0.01, (stage, found, expected)
        lines.append(
            f"ZeRO {stage} all-reduces {reduced:.1f} in each backward pass and {summed:.1f} in each step, gathers "
            f"{gathered:.1f} in each step"
        )
    return "; ".join(lines)


def page(measured: Mapping[str, Any], picture: str) -> str:
    """What was measured, what is assumed, and what follows."""
    latency, speed = fit(measured)
    flops = ", ".join(
        f"{total(_flops(PRESETS[name]())).useful / 1e12:.0f} TFLOP in {BATCH_SIZE} samples of `{name}`"
        for name in PRESETS_SHOWN
    )
    parameters = ", ".join(
        f"`{name}` has {count_parameters(PRESETS[name]())['total'] / 1e6:,.0f} M" for name in PRESETS_SHOWN
    )
    text = f"""The measurements are of that day and commit. The projection is made from them again, without measuring,
by `python -m benchmarks.scaling_page`.

Assumed, as in `viewdiff plan`: H100 with {GPU.bfloat16 / 1e12:g} TFLOP/s, {GPU.float32 / 1e12:g} for volumes, which are
computed in float32, of which {UTILISATION:.0%} are reached; {flops}; {GPUS_PER_MACHINE} GPUs a machine; NVLink
{GPU.link / GB:g} GB/s and {1e6 * LATENCY_INSIDE:g} µs, 400 Gb/s and {1e6 * LATENCY_BETWEEN:g} µs per adapter between
machines; rings through all GPUs, which do not overlap with arithmetic.

Counted: parameters, of which {parameters}. Bytes per parameter that collectives are given: {counted_bytes(measured)}.
There is a backward pass for each micro-batch and part of the objective. Measured: a loader process gives
{measured["loader"]:,.0f} samples a second.

{table(HEADER, rows(measured["loader"]))}
Fixed batches of {BATCH_SIZE} samples end at {BATCH_SIZE} GPUs: a GPU cannot have less than one sample.

All-reduce of gloo here against the formula, with α = {1e6 * latency:.0f} µs from the smallest and β = {speed / 1e9:.2f}
GB/s from the largest message between 2 processes; the fastest of {measured.get("repetitions", 20)}. More processes than
cores take turns on them, and the formula is multiplied by how many there are per core. Between the two ends
messages are faster than it says, presumably because they stay in the processor's caches; a training sends pieces of
200 MB:

{table(["size", "processes", "measured, ms", "formula, ms", "difference"], check_rows(measured))}
![Efficiency]({picture})"""
    return render(title="Scaling, projected", text=text, known=measured)


def main() -> None:
    """Write docs/benchmarks/<date>-scaling.{md,png}; print the table of docs/scaling.md."""
    path = max(FOLDER.glob("*-scaling.json"))
    picture = path.with_suffix(".png")
    plot(picture)
    path.with_suffix(".md").write_text(page(json.loads(path.read_text()), picture.name), encoding="utf-8")
    print(f"written: {path.with_suffix('.md').name} and .png; the table of docs/scaling.md is\n\n{summary()}")


if __name__ == "__main__":
    main()
