"""Kinds of GPU, and how fast each could compute and send at best."""

from __future__ import annotations

import re
from typing import NamedTuple

from infra.errors import UserError
from model.cost.flops import Flops, total
from model.cost.products import FLOAT32_PARTS
from pipelines.settings.names import nearest


class Gpu(NamedTuple):
    """From the makers' data sheets: dense products, sums in float32."""

    name: str
    device: str  # what the driver calls it, a regular expression
    memory: int  # GB
    bfloat16: float  # FLOP/s of the tensor cores
    float32: float  # FLOP/s outside of them
    link: float  # bytes/s to the others in its machine, each way: NVLink, or PCIe where there is none

    def peak(self, precision: str) -> float:
        """FLOP/s in an engine's precision, "bf16" or "float32"."""
        return self.bfloat16 if precision == "bf16" else self.float32


GPUS = (
    Gpu("rtx3090", r"RTX 3090$", 24, 71e12, 35.6e12, 32e9),
    Gpu("rtx4090", r"RTX 4090$", 24, 165e12, 82.6e12, 32e9),
    Gpu("a100", r"\bA100-", 80, 312e12, 19.5e12, 300e9),
    Gpu("h100", r"\bH100 80GB HBM3$", 80, 989e12, 67e12, 450e9),
    Gpu("h200", r"\bH200$", 141, 989e12, 67e12, 450e9),
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
    return next((gpu for gpu in GPUS if re.search(gpu.device, device_name)), None)


def ideal_seconds(flops: dict[str, Flops], gpu: Gpu, precision: str) -> float:
    """Of a step's useful FLOPs, by part of the network, on one GPU at its best: volumes are computed in float32 in any
    case. Divided by the seconds that a step takes it is the utilisation.
    """
    exact = total({name: part for name, part in flops.items() if name in FLOAT32_PARTS}).useful
    return exact / gpu.float32 + (total(flops).useful - exact) / gpu.peak(precision)
