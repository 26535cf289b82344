"""Comparing a fast version of a volume operator with its plain twin: outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.kernels.selection import Version, use

# Sums in another order, relative to the largest value.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}


def _run(call: Callable[[], Tensor], inputs: list[Tensor], version: Version) -> tuple[Tensor, list[Tensor]]:
    """The output, and gradients of a random weighting of it."""
    with use(version):
        output = call()
        direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(5), dtype=output.dtype)
        return output.detach(), list(torch.autograd.grad((output * direction).sum(), inputs))


def assert_same(call: Callable[[], Tensor], inputs: list[Tensor], names: list[str], version: Version) -> None:
    """Gradients are compared relative to the largest one of the same layer: a bias's is a sum over everything, whose
    terms may cancel down to the rounding errors of the weight's.
    """
    expected, expected_gradients = _run(call, inputs, "plain")
    output, gradients = _run(call, inputs, version)
    tolerance = TOLERANCE[output.dtype]
    assert expected.std() > 0.01  # nothing is compared with nothing
    assert (output - expected).abs().max() < tolerance * expected.abs().max()
    largest: dict[str, float] = {}
    for name, gradient in zip(names, expected_gradients, strict=True):
        layer = name.rpartition(".")[0] or name
        largest[layer] = max(largest.get(layer, 0.0), gradient.abs().max().item())
    for name, ours, theirs in zip(names, gradients, expected_gradients, strict=True):
        assert theirs.abs().max() > 0, name
        assert (ours - theirs).abs().max() < tolerance * largest[name.rpartition(".")[0] or name], name


def with_gradients(module: nn.Module, **tensors: Tensor) -> tuple[list[Tensor], list[str]]:
    named = {name: tensor.requires_grad_() for name, tensor in tensors.items()} | dict(module.named_parameters())
    return list(named.values()), list(named)
