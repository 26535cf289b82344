"""Kinds of GPU, and how fast each could compute at best."""

from __future__ import annotations

from typing import NamedTuple

from infra.errors import UserError
from pipelines.names import nearest


class Gpu(NamedTuple):
    """From the makers' data sheets: dense products, sums in float32."""

    name: str
    memory: int  # GB
    bfloat16: float  # FLOP/s of the tensor cores
    float32: float  # FLOP/s outside of them

    def peak(self, precision: str) -> float:
        """FLOP/s in an engine's precision, "bf16" or "float32"."""
        return self.bfloat16 if precision == "bf16" else self.float32


GPUS = (
    Gpu("rtx3090", 24, 71e12, 35.6e12),
    Gpu("rtx4090", 24, 165e12, 82.6e12),
    Gpu("a100", 80, 312e12, 19.5e12),
    Gpu("h100", 80, 989e12, 67e12),
    Gpu("h200", 141, 989e12, 67e12),
)
GPU_NAMES = tuple(gpu.name for gpu in GPUS)


def choose_gpu(memory: float, name: str | None) -> Gpu:
    """The kind called `name`; without one the smallest with that memory in GB, and of these the slowest.

    Raises:
        UserError: no kind has that name.
    """
    if name is None:
        return min(GPUS, key=lambda gpu: (gpu.memory < memory, abs(gpu.memory - memory), gpu.bfloat16))
    for gpu in GPUS:
        if gpu.name == name:
            return gpu
    raise UserError(f"unknown GPU {name!r}{nearest(name, GPU_NAMES)}")


def recognise_gpu(device_name: str) -> Gpu | None:
    """The kind of GPU that the driver calls `device_name`, such as "NVIDIA H100 80GB HBM3"; None for others."""
    compact = device_name.lower().replace(" ", "")
    return next((gpu for gpu in GPUS if gpu.name in compact), None)
