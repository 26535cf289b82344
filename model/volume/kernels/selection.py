"""Which version of a projection layer's volume computations (the paper, section 3.2) runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

Version = Literal["plain", "tiled", "triton"]
# Triton's matrix products need at least 16 channels, and its blocks powers of two.
TRITON_CHANNELS = (16, 32)

_forced: Version | None = None


def version_for(features: Tensor) -> Version:
    """The version for features [..., C]: Triton's for float32 on CUDA if it takes C channels, else the tiled one.

    "plain", the readable one that needs memory for everything, runs only where `use` asks for it. Triton has no plain
    mean over views (`aggregation="mean"`): that is tiled everywhere, which on CUDA makes the host wait.
    """
    if _forced is not None:
        return _forced
    fits = features.is_cuda and features.dtype == torch.float32 and features.shape[-1] in TRITON_CHANNELS
    return "triton" if fits else "tiled"


@contextmanager
def use(version: Version) -> Iterator[None]:
    """Run this version everywhere, for tests and benchmarks that compare them; around forward *and* backward pass. Not
    thread-safe.
    """
    global _forced
    before, _forced = _forced, version
    try:
        yield
    finally:
        _forced = before
