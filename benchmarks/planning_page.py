"""docs/planning.md: what the presets would take on GPUs of some kinds: `python -m benchmarks.planning_page`.

Nothing is measured: it is `viewdiff plan` for many GPUs at once, the same on every machine.
"""

from __future__ import annotations

from benchmarks.record import REPOSITORY, table
from model.cost.flops import total
from pipelines.gpus import GPUS
from pipelines.memory import GB, passes_memory
from pipelines.presets import PRESETS
from pipelines.requests import SizingConfig
from pipelines.sizing import Sizing, size_training
from pipelines.sizing_text import ASSUMPTIONS, duration

PRESET_NAMES = ("released", "paper", "pyramid")
GPU_COUNTS, GPU_MEMORIES = (1, 2, 8, 64), (24.0, 80.0, 141.0)
PATH = REPOSITORY / "docs" / "planning.md"


def rows_of(name: str) -> list[list[object]]:
    """Of a preset: one row for each number and memory of GPUs."""
    config = PRESETS[name]()
    plans = [
        (memory, size_training(config, SizingConfig(gpus=count, gpu_memory=memory)))
        for memory in GPU_MEMORIES
        for count in GPU_COUNTS
    ]
    return [_row(memory, plan) for memory, plan in plans]


def _row(memory: float, plan: Sizing) -> list[object]:
    train, gpus = plan.config.train, f"{plan.gpus} × {memory:g} GB"
    if not plan.fits:
        return [gpus, plan.gpu.name, "does not fit", "", "", f"{plan.memory.peak / GB:.1f}", "", "", ""]
    choice = [train.engine.zero_stage, train.micro_batch_size, plan.passes, f"{plan.memory.peak / GB:.1f}"]
    times = [f"{plan.step_seconds:.2g}", f"{plan.sent_bytes / GB:.1f}", duration(plan.days)]
    return [gpus, plan.gpu.name, *choice, *times]


def preset_section(name: str) -> str:
    """Heading, size of a step, table."""
    config, plan = PRESETS[name](), size_training(PRESETS[name](), SizingConfig())
    flops, train = total(plan.flops), config.train
    kept = [passes_memory(config, 1, checkpointing=on) for on in (False, True)]
    activations = " GB, ".join(f"{(memory.kept - memory.weight_copies) / GB:.2f}" for memory in kept)
    header = [
        "GPUs",
        "speed of",
        "ZeRO",
        "samples at once",
        "passes a step",
        "peak GB",
        "s a step",
        "GB sent a step",
        "whole training",
    ]
    return (
        f"## {name}\n\n{train.num_steps:,} steps of {train.batch_size} samples of {train.num_views} views, "
        f"{flops.useful / 1e12:.0f} TFLOP of use a step and {flops.recomputed / flops.useful:.0%} more computed again. "
        f"Activations of one sample: {activations} GB with gradient checkpointing.\n\n{table(header, rows_of(name))}"
    )


def main() -> None:
    """Write the page."""
    speeds = ", ".join(f"{gpu.name} {gpu.bfloat16 / 1e12:g} and {gpu.float32 / 1e12:g}" for gpu in GPUS)
    assumed = "\n".join(f"- {line}" for line in ASSUMPTIONS)
    page = (
        "# What a training would take\n\n"
        "Made by `python -m benchmarks.planning_page`; `viewdiff plan --preset paper --gpus 8 --gpu-memory 80` says "
        "the same of any settings, with memory part by part. How good the plan is: `docs/benchmarks/`, `*-plan.md`.\n\n"
        "For each kind of GPU the smallest ZeRO stage that fits is taken, then the most samples at once, at most 8. "
        f"Assumed:\n\n{assumed}\n- {SizingConfig().utilisation:.0%} of the peak is reached. That is a guess until a "
        "training has been measured (`time/utilisation` in its metrics): time goes with its inverse.\n\n"
        "Where sending takes longer than computing, as with 64 GPUs in many machines (12 GB a step at 25 GB/s are half "
        "a second), that is the time.\n\n"
        f"Peaks, bfloat16 and float32, TFLOP/s: {speeds}.\n\n"
    )
    PATH.write_text(page + "\n".join(preset_section(name) for name in PRESET_NAMES), encoding="utf-8")
    print(f"written: {PATH.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
