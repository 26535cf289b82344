"""Floating-point operations of a call of the network, part by part.

Counted are matrix products, convolutions and attention, two operations for each multiplication and its addition; what
is done elementwise or looked up takes memory bandwidth rather than arithmetic. Useful are the forward pass and the
products of the backward pass that need be: twice as many, fewer for frozen weights. What is computed a second time to
save memory is executed, but not useful.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model.cost.network import list_products
from model.cost.products import PARTS, Workload
from model.unet import ViewDiffUNet


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Of one part of the network, or of all."""

    forward: float
    backward: float
    """Without what is computed again."""
    recomputed: float
    """What the backward pass computes again: by gradient checkpointing, `recompute_volumes`, and inside of the volume
    operators."""

    @property
    def useful(self) -> float:
        """Forward and backward pass."""
        return self.forward + self.backward

    @property
    def executed(self) -> float:
        """All that is computed."""
        return self.useful + self.recomputed

    def __add__(self, other: Flops) -> Flops:
        return Flops(
            forward=self.forward + other.forward,
            backward=self.backward + other.backward,
            recomputed=self.recomputed + other.recomputed,
        )


NOTHING = Flops(forward=0.0, backward=0.0, recomputed=0.0)


def count_flops(network: ViewDiffUNet, workload: Workload) -> dict[str, Flops]:
    """Of each of `PARTS`, for one call of the network, which need not hold values (`ViewDiffUNet.meta`)."""
    parts = dict.fromkeys(PARTS, NOTHING)
    for product in list_products(network, workload):
        again = product.recomputed + int(product.checkpointed and network.config.gradient_checkpointing)
        parts[product.part] += Flops(
            forward=product.flops, backward=product.gradients * product.flops, recomputed=again * product.flops
        )
    return parts


def total(parts: Mapping[str, Flops]) -> Flops:
    """Of all parts together."""
    return sum(parts.values(), start=NOTHING)
