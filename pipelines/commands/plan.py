"""`viewdiff plan`: what a training would take, as text."""

from __future__ import annotations

from collections.abc import Collection

from infra.log import format_seconds
from model.cost.flops import total
from model.cost.products import FLOAT32_PARTS, SEEN_SHARE
from pipelines.chain.checks import check_base_model
from pipelines.planning.memory import GB, passes_memory
from pipelines.planning.network import assumption
from pipelines.planning.sizing import MICRO_BATCH_SIZE, ZERO_STAGE, Sizing, remedies, size_training
from pipelines.planning.step_time import GPUS_PER_MACHINE, ring_link
from pipelines.settings.commands import SizingConfig
from pipelines.settings.run import RunConfig

ASSUMPTIONS = (
    "memory in GB of 10⁹ bytes; what cards have beyond their name's number is left for CUDA's own memory, libraries' "
    "workspaces and fragmentation",
    f"each view sees {SEEN_SHARE:.0%} of a volume's voxels",
    "useful FLOPs only: forward and backward pass, not what is computed again to save memory",
    "volumes in float32, without the TF32 that cuDNN may take beside bfloat16; all else in the configured precision",
    f"GPUs send along rings when they have computed, at their links' stated speed, {GPUS_PER_MACHINE} GPUs a machine",
    "waiting for data, starts, checkpoints and previews are not counted",
)


def print_sizing(config: RunConfig, sizing: SizingConfig, *, kept: Collection[str] = ()) -> None:
    """Print how the training would be divided, its memory by part, its time, and what is assumed. Options in `kept`
    were given, and are not chosen.

    Raises:
        UserError: see `check_base_model` and `size_training`.
    """
    check_base_model(config)
    plan = size_training(config, sizing, kept=kept)
    lines = [f"{config.name} on {sizing.gpus} × {sizing.gpu_memory:g} GB"]
    lines += [assumed] if (assumed := assumption(config.base)) else []
    lines += _memory(plan, sizing)
    lines += _choice(plan, sizing)
    lines += _activations(config)
    lines += _time(plan, sizing)
    lines += ["", "assumed", *(f"  {line}" for line in ASSUMPTIONS)]
    print("\n".join(lines))


def _memory(plan: Sizing, sizing: SizingConfig) -> list[str]:
    lines = ["", "memory of the first GPU, at the fullest moment of the backward pass"]
    for name, num_bytes in plan.memory.backward.items():
        lines.append(f"  {name:<42}{num_bytes / GB:9.2f} GB")
    whole = sum(plan.memory.backward.values())
    lines.append(f"  {'together':<42}{whole / GB:9.2f} GB of {sizing.gpu_memory:g}")
    lines.append(f"  {'later, while the weights are updated':<42}{plan.memory.step / GB:9.2f} GB")
    return lines


def _choice(plan: Sizing, sizing: SizingConfig) -> list[str]:
    train = plan.config.train
    stage = f"ZeRO {train.engine.zero_stage}{_as_given(plan, ZERO_STAGE)}"
    samples = f"{_samples(train.micro_batch_size)} at a time{_as_given(plan, MICRO_BATCH_SIZE)}"
    if not plan.fits:
        found = "\n".join(f"  {remedy}" for remedy in remedies(plan, sizing.gpu_memory))
        even = "" if plan.kept else "even "
        return [
            "",
            f"DOES NOT FIT: {plan.memory.peak / GB:.1f} GB {even}with {stage}, {samples}. What would, each alone:",
            found,
        ]
    return [
        "",
        f"fits with {stage}, {samples}: {plan.passes} backward passes per step and GPU",
        f"  --num-workers {plan.gpus} --use-gpu --train.micro-batch-size {train.micro_batch_size} "
        f"--train.engine.zero-stage {train.engine.zero_stage}",
    ]


def _activations(config: RunConfig) -> list[str]:
    """Of one sample, with gradient checkpointing and without."""
    lines = ["", f"activations of one sample of {config.train.num_views} views, kept for the backward pass"]
    for name, checkpointing in (("without gradient checkpointing", False), ("with it", True)):
        memory = passes_memory(config, 1, checkpointing=checkpointing)
        lines.append(f"  {name:<42}{(memory.kept - memory.weight_copies) / GB:9.2f} GB")
    return lines


def _time(plan: Sizing, sizing: SizingConfig) -> list[str]:
    flops, whole, train = plan.flops, total(plan.flops), plan.config.train
    peak = plan.gpu.peak(train.engine.precision)
    lines = ["", f"a step of {train.batch_size} samples: {whole.useful / 1e12:.3g} TFLOP of use"]
    lines += [f"  {name:<42}{part.useful / whole.useful:8.1%}" for name, part in flops.items() if part.useful]
    lines.append(f"  computed again on top{whole.recomputed / whole.useful:29.1%}")
    exact = sum(part.useful for name, part in flops.items() if name in FLOAT32_PARTS) / whole.useful
    speed = f"computing at {sizing.utilisation:.0%} of {plan.gpu.name}'s {peak / 1e12:g} TFLOP/s"
    if peak != plan.gpu.float32 and exact:
        speed += f" ({plan.gpu.float32 / 1e12:g} for the {exact:.0%} in float32)"
    parts = {speed: plan.step.computing}
    if plan.gpus > 1:
        slowest = ring_link(plan.gpu, sizing).speed
        parts[f"sending {plan.step.sent_bytes / GB:.1f} GB from each GPU, {slowest / GB:g} GB/s"] = plan.step.sending
        parts["together"] = plan.step.seconds
    lines += ["", f"a step, and {train.num_steps:,} of them"]
    width = max(map(len, parts))
    for name, seconds in parts.items():
        lines.append(f"  {name:<{width}}  {seconds:8.3g} s  {duration(plan.days(seconds)):>12}")
    return lines


def _as_given(plan: Sizing, option: str) -> str:
    return " (as given)" if option in plan.kept else ""


def _samples(number: int) -> str:
    return "1 sample" if number == 1 else f"{number} samples"


def duration(days: float) -> str:
    """Days as a person says them."""
    return f"{days:.1f} days" if days >= 1 else format_seconds(days * 86_400)
