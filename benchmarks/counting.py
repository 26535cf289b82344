"""What one call of the network costs, counted without computing: operators, and bytes kept for the backward pass.

PyTorch's FakeTensor mode runs the network at its true size on tensors without values, so the counts are exact and the
same on every machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from model.config import ViewDiffConfig
from model.cost.memory import LiveBytes, fake_inputs
from model.cost.products import Workload
from model.unet import ViewDiffUNet
from pipelines.planning.network import STABLE_DIFFUSION_2_UNET

LATENT_SIZE = (32, 32)  # 256 × 256 pixels
TEXT_SHAPE = (77, 1024)  # tokens and channels of Stable Diffusion 2's text encoder


class OperatorCount(TorchDispatchMode):
    """Counts the operators that start work; views of a tensor, which only rename its memory, do not."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _is_view(func):
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def count_operators(config: ViewDiffConfig, *, num_views: int = 5, training: bool = True) -> Counter[str]:
    """Operators of one forward pass of one sample in float32, geometry included."""
    with FakeTensorMode():
        network, inputs = _network(config, torch.float32), _inputs(num_views, training=training)
        with torch.set_grad_enabled(training), OperatorCount() as count:
            network(**inputs)
    return count.counts


def count_stock_operators(*, num_views: int = 5) -> int:
    """The same for Stable Diffusion's own U-Net on as many independent images."""
    with FakeTensorMode():
        unet, inputs = UNet2DConditionModel.from_config(STABLE_DIFFUSION_2_UNET), _inputs(num_views, training=False)
        text = inputs["text"].repeat(num_views, 1, 1)
        with torch.no_grad(), OperatorCount() as count:
            unet(inputs["latents"][0], inputs["timesteps"][0], text)
    return count.counts.total()


def saved_bytes(config: ViewDiffConfig, *, dtype: torch.dtype, num_views: int = 5) -> int:
    """Bytes that are alive between forward and backward pass of one sample, weights and result left out."""
    with FakeTensorMode():
        network, inputs = _network(config, dtype), _inputs(num_views, training=True)
        with LiveBytes(tuple(network.parameters())) as live:
            output = network(**inputs)
            return live.without(output)


def saved_bytes_of_stock(*, dtype: torch.dtype, num_views: int = 5) -> int:
    """The same for Stable Diffusion's own U-Net on as many independent images."""
    with FakeTensorMode():
        with _default_dtype(dtype):
            unet = UNet2DConditionModel.from_config(STABLE_DIFFUSION_2_UNET)
        inputs = _inputs(num_views, training=True)
        latents, text = inputs["latents"][0].to(dtype), inputs["text"].repeat(num_views, 1, 1).to(dtype)
        with LiveBytes(tuple(unet.parameters())) as live:
            output = unet(latents, inputs["timesteps"][0], text).sample
            return live.without(output)


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return (
        func.namespace == "prim"
        or func is torch.ops.aten._unsafe_view.default
        or any(result.alias_info is not None and not result.alias_info.is_write for result in returns)
    )


def _network(config: ViewDiffConfig, dtype: torch.dtype) -> ViewDiffUNet:
    """Of Stable Diffusion 2.1's size, without gradient checkpointing of the U-Net's own blocks."""
    with _default_dtype(dtype):
        unet = UNet2DConditionModel.from_config(STABLE_DIFFUSION_2_UNET)
        return ViewDiffUNet(unet, replace(config, gradient_checkpointing=False)).train()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make networks in this precision: fake ones cannot be converted afterwards."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _inputs(num_views: int, *, training: bool) -> dict[str, Any]:
    """One sample; in training with the last view hidden and with noise."""
    work = Workload(
        num_samples=1, num_views=num_views, latent_size=LATENT_SIZE, text_length=TEXT_SHAPE[0], hidden_views=1
    )
    return fake_inputs(work, text_channels=TEXT_SHAPE[1], training=training)
