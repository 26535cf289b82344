"""docs/planning.md: what the presets would take on GPUs of some kinds: `python -m benchmarks.planning_page`.

Nothing is measured: it is `viewdiff plan` for many GPUs at once, the same on every machine.
"""

from __future__ import annotations

from benchmarks.record import REPOSITORY, table
from model.cost.flops import total
from pipelines.commands.plan import ASSUMPTIONS, duration
from pipelines.planning.gpus import GPUS
from pipelines.planning.memory import GB, passes_memory
from pipelines.planning.sizing import Sizing, size_training
from pipelines.settings.commands import SizingConfig
from pipelines.settings.presets import PRESETS

PRESET_NAMES = ("released", "paper", "pyramid")
GPU_COUNTS, GPU_MEMORIES = (1, 2, 8, 64), (24.0, 80.0, 141.0)
PATH = REPOSITORY / "docs" / "planning.md"
HEADER = ["GPUs", "speed of", "ZeRO", "samples at once", "passes a step", "peak GB", "GB sent a step"]
HEADER += ["s computing", "s sending", "training, computing alone", "with sending"]


def row(name: str, count: int, memory: float) -> list[object]:
    """A preset on that many GPUs of that memory."""
    plan = size_training(PRESETS[name](), SizingConfig(gpus=count, gpu_memory=memory))
    gpus = f"{count} × {memory:g} GB"
    if not plan.fits:
        return [gpus, plan.gpu.name, "does not fit", "", "", f"{plan.memory.peak / GB:.1f}", *[""] * 5]
    return [gpus, plan.gpu.name, *_division(plan), *_times(plan)]


def _division(plan: Sizing) -> list[object]:
    train = plan.config.train
    return [train.engine.zero_stage, train.micro_batch_size, plan.passes, f"{plan.memory.peak / GB:.1f}"]


def _times(plan: Sizing) -> list[object]:
    step = plan.step
    seconds = [f"{step.sent_bytes / GB:.1f}", f"{step.computing:.2g}", f"{step.sending:.2g}"]
    return [*seconds, duration(plan.days(step.computing)), duration(plan.days(step.seconds))]


def heading(name: str) -> str:
    """Of a preset's section, with the size of a step."""
    config, plan = PRESETS[name](), size_training(PRESETS[name](), SizingConfig())
    flops, train = total(plan.flops), config.train
    kept = [passes_memory(config, 1, checkpointing=on) for on in (False, True)]
    activations = " GB, ".join(f"{(memory.kept - memory.weight_copies) / GB:.2f}" for memory in kept)
    return (
        f"## {name}\n\n{train.num_steps:,} steps of {train.batch_size} samples of {train.num_views} views, "
        f"{flops.useful / 1e12:.0f} TFLOP of use a step and {flops.recomputed / flops.useful:.0%} more computed again. "
        f"Activations of one sample: {activations} GB with gradient checkpointing.\n\n"
    )


def introduction() -> str:
    """What the page is, and what it assumes."""
    speeds = ", ".join(f"{gpu.name} {gpu.bfloat16 / 1e12:g} and {gpu.float32 / 1e12:g}" for gpu in GPUS)
    links = ", ".join(f"{gpu.name} {gpu.link / GB:g}" for gpu in GPUS)
    assumed = "\n".join(f"- {line}" for line in ASSUMPTIONS)
    default = SizingConfig()
    return (
        "# What a training would take\n\n"
        "Made by `python -m benchmarks.planning_page`; `viewdiff plan --preset paper --gpus 8 --gpu-memory 80` says "
        "the same of any settings, with memory part by part. `--train.micro-batch-size` and "
        "`--train.engine.zero-stage` are chosen unless they are given: then it says whether these fit. How good the "
        "plan's memory and FLOPs are is measured on a CPU: `docs/benchmarks/`, `*-plan.md`; how far to trust the time "
        "that sending takes: [scaling.md](scaling.md). No training on a GPU is behind these figures.\n\n"
        "For each kind of GPU the smallest ZeRO stage that fits is taken (on one GPU 0, which takes least there), then "
        f"the most samples at once, at most 8. Assumed:\n\n{assumed}\n- {default.utilisation:.0%} of the peak is "
        "reached (`--utilisation`). That is a guess until a training has been measured (`time/utilisation` in its "
        "metrics): computing goes with its inverse.\n"
        f"- {default.network_gigabits:g} Gb/s between machines, one fast adapter each (`--network-gigabits`). With "
        "one such adapter for each of a machine's 8 GPUs, 3200, sending on 64 GPUs takes a fifth.\n\n"
        f"Peaks, bfloat16 and float32, TFLOP/s: {speeds}. Within a machine, GB/s: {links}.\n\n"
    )


def main() -> None:
    """Write the page."""
    sections = []
    for name in PRESET_NAMES:
        rows = [row(name, count, memory) for memory in GPU_MEMORIES for count in GPU_COUNTS]
        sections.append(heading(name) + table(HEADER, rows))
        print(sections[-1], flush=True)
    PATH.write_text(introduction() + "\n".join(sections), encoding="utf-8")
    print(f"written: {PATH.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
