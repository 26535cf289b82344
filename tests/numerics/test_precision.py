"""The network in bfloat16: by autocast, as it is trained, and with bfloat16 weights, as it may be served."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.support.tiny_network import random_inputs, tiny_network

# bfloat16 keeps 8 bits; through about thirty layers that is a few percent of the largest value.
RELATIVE_TOLERANCE = 0.05


def _assert_near(ours: Tensor, exact: Tensor) -> None:
    assert (ours.float() - exact).abs().max() < RELATIVE_TOLERANCE * exact.abs().max()


def test_autocast_gives_nearly_the_same_outputs_and_gradients() -> None:
    network, inputs = tiny_network(), random_inputs(1, 3)
    options = {"hidden_views": 1, "opacity_noise_seeds": torch.tensor([4])}
    exact = network(**inputs, **options)
    exact_gradients = torch.autograd.grad(exact.square().mean(), list(network.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        cast = network(**inputs, **options)
    assert cast.dtype == torch.float32  # the latents'
    _assert_near(cast, exact)
    gradients = torch.autograd.grad(cast.square().mean(), list(network.parameters()))
    ours, theirs = (torch.cat([part.flatten() for part in parts]) for parts in (gradients, exact_gradients))
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.99


@torch.no_grad()
def test_autocast_does_not_touch_the_geometry() -> None:
    network, inputs = tiny_network(), random_inputs(1, 3)
    exact = network.prepare(inputs["scene"], (8, 8)).prepared
    with torch.autocast("cpu", torch.bfloat16):
        inputs["scene"].check()
        cast = network.prepare(inputs["scene"], (8, 8)).prepared
    assert exact is not None
    assert cast is not None
    for shape, layer in exact.layers.items():
        for ours, theirs in zip(
            (*cast.layers[shape].voxels, *cast.layers[shape].rays), (*layer.voxels, *layer.rays), strict=True
        ):
            assert torch.equal(ours, theirs)


@torch.no_grad()
def test_weights_in_half_precision() -> None:
    network, inputs = tiny_network(), random_inputs(1, 3)
    exact = network(**inputs)
    _assert_near(network.bfloat16()(**inputs), exact)
