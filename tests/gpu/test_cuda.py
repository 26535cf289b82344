"""What only a GPU can show: compiled kernels, no waiting for the device, the whole network in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from model.config import ProjectionConfig, ViewDiffConfig
from model.layers.views import Scene
from model.unet import ViewDiffUNet
from model.volume.kernels.selection import use, version_for
from tests.numerics.comparison import assert_same
from tests.numerics.kernel_cases import aggregation_case, march_case
from tests.support.factories import TEXT_CHANNELS, look_at_cameras, tiny_unet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def sync_mode() -> Iterator[None]:
    """The test may make whatever waits for the device an error; afterwards it is none any more."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("channels", [16, 32])
def test_compiled_aggregation_equals_the_plain_one(channels: int) -> None:
    assert_same(aggregation_case(grid_size=20, channels=channels).to("cuda"), "triton")


@pytest.mark.parametrize("channels", [16, 32])
def test_compiled_march_equals_the_plain_one(channels: int) -> None:
    assert_same(march_case(grid_size=9, channels=channels, num_positions=128).to("cuda"), "triton")


def test_a_training_pass_waits_for_nothing(sync_mode: None) -> None:
    projection = ProjectionConfig(blocks=(("mid_block", 8),), num_samples=16)
    network = ViewDiffUNet(tiny_unet(), ViewDiffConfig(rank=2, projection=projection)).cuda()
    bounds = torch.tensor([[[-1.0] * 3, [1.0] * 3]]).repeat(2, 1, 1)
    scene = Scene(look_at_cameras(2, 3), bounds, torch.rand(2, 3, 2)).check().to("cuda")
    inputs = {
        "latents": torch.randn(2, 3, 4, 8, 8, device="cuda"),
        "timesteps": torch.full((2, 3), 300, device="cuda"),
        "text": torch.randn(2, 5, TEXT_CHANNELS, device="cuda"),
        "scene": scene,
        "hidden_views": 1,
        "opacity_noise_seeds": torch.arange(2, device="cuda"),
    }
    assert version_for(torch.zeros(1, 16, device="cuda")) == "triton"
    for mode in ("default", "error"):  # the first pass compiles
        torch.cuda.set_sync_debug_mode(mode)
        with torch.autocast("cuda", torch.bfloat16):
            loss = network(**inputs).square().mean()
        loss.backward()
    torch.cuda.set_sync_debug_mode("default")
    gradients = [parameter.grad for parameter in network.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)


def test_versions_agree_on_the_whole_network() -> None:
    projection = ProjectionConfig(blocks=(("mid_block", 8),), num_samples=16)
    network = ViewDiffUNet(tiny_unet(), ViewDiffConfig(rank=2, projection=projection)).cuda()
    bounds = torch.tensor([[[-1.0] * 3, [1.0] * 3]])
    inputs = {
        "latents": torch.randn(1, 3, 4, 8, 8, device="cuda"),
        "timesteps": torch.full((1, 3), 300, device="cuda"),
        "text": torch.randn(1, 5, TEXT_CHANNELS, device="cuda"),
        "scene": Scene(look_at_cameras(1, 3), bounds, torch.rand(1, 3, 2)).to("cuda"),
    }
    with torch.no_grad():
        fast = network(**inputs)
        with use("plain"):
            plain = network(**inputs)
    # Float32 sums in another order through about thirty layers.
    torch.testing.assert_close(fast, plain, rtol=0, atol=2e-4)
