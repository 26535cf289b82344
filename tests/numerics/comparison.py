"""Comparing a fast version of a volume operator with its plain twin: outputs and gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from model.volume.kernels.selection import Version, use
from tests.numerics.kernel_cases import AggregationCase, MarchCase

# Sums in another order, relative to the largest value.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}


def _run(case: AggregationCase | MarchCase, version: Version, without: tuple[str, ...]) -> dict[str, Tensor]:
    """In float64, by name: the output, and the gradients of a random weighting of it."""
    inputs = {name: tensor for name, tensor in case.inputs().items() if not name.startswith(without)}
    with use(version):
        output = case.run()
        direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        gradients = torch.autograd.grad((output * direction.to(output)).sum(), list(inputs.values()))
    return {
        name: value.detach().double() for name, value in zip(["output", *inputs], [output, *gradients], strict=True)
    }


def assert_same(case: AggregationCase | MarchCase, version: Version, *, without: tuple[str, ...] = ()) -> None:
    """The version gives the plain version's output and gradients in float64, but for those whose names start with
    `without`; relative to the largest gradient of the same layer.

    The gradient of a single number, a bias's, is a sum over everything whose terms cancel: it has one digit less.
    """
    exact, found = _run(case.to(torch.float64), "plain", without), _run(case, version, without)
    assert exact["output"].std() > 0.01  # nothing is compared with nothing
    largest: dict[str, float] = {}
    for name, value in exact.items():
        largest[_layer(name)] = max(largest.get(_layer(name), 0.0), value.abs().max().item())
    for name, value in exact.items():
        assert value.abs().max() > 0, name
        tolerance = TOLERANCE[case[1].dtype] * (10 if value.numel() == 1 else 1)
        assert (found[name] - value).abs().max() < tolerance * largest[_layer(name)], name


def _layer(name: str) -> str:
    """A parameter's layer; other tensors are their own."""
    return name.rpartition(".")[0] or name
