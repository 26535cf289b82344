"""torch.compile takes the whole network, forward and backward, as one graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.config import ProjectionConfig, ViewDiffConfig
from model.layers.views import Scene
from model.unet import ViewDiffUNet
from tests.support.factories import TEXT_CHANNELS, look_at_cameras, randomize, tiny_unet


@pytest.mark.parametrize("saves_memory", [False, True])
def test_one_graph_and_the_same_results(saves_memory: bool) -> None:
    """`fullgraph` makes every graph break an error. The backend is the one that runs the graphs as they are: what a
    compiler makes of them is its own matter.
    """
    torch.manual_seed(0)
    projection = ProjectionConfig(blocks=(("mid_block", 4),), num_samples=4, recompute_volumes=saves_memory)
    config = ViewDiffConfig(rank=2, projection=projection, gradient_checkpointing=saves_memory)
    network = ViewDiffUNet(tiny_unet(), config)
    randomize(network, seed=1, std=0.05)
    scene = Scene(look_at_cameras(2, 3), torch.tensor([[[-1.0] * 3, [1.0] * 3]]).repeat(2, 1, 1), torch.rand(2, 3, 2))
    latents, text = torch.randn(2, 3, 4, 8, 8), torch.randn(2, 5, TEXT_CHANNELS)

    def gradients(network: torch.nn.Module, seeds: Tensor) -> list[Tensor]:
        predicted = network(
            latents,
            torch.full((2, 3), 300),
            text=text,
            scene=scene,
            hidden_views=1,
            opacity_noise_seeds=seeds,
        )
        return [predicted, *torch.autograd.grad(predicted.square().mean(), list(network.parameters()))]

    seeds = torch.tensor([3, 4])
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for ours, plain in zip(gradients(compiled, seeds), gradients(network, seeds), strict=True):
        # The same operators in the same order.
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-7)
    with torch.compiler.set_stance("fail_on_recompile"):
        gradients(compiled, torch.tensor([5, 6]))  # other noise is no other graph
