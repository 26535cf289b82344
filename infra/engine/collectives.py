"""Values that the ranks of a training exchange."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(values: Tensor) -> list[float]:
    """Elementwise sum over ranks of [N] values. Every rank must call it and gets the result."""
    total = values.clone()
    dist.all_reduce(total)
    return total.tolist()


def from_first_rank(value: Any) -> Any:
    """Rank 0's `value`, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_every_rank(value: Any) -> list[Any]:
    """The `value` of each rank, on every rank."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
