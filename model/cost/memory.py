"""Memory of a training pass beside the weights, counted without computing.

PyTorch's FakeTensor mode runs the network at its true size on tensors without values, and what is alive is counted
after every operator, so the result is the same on every machine. What an operator takes while it runs is not seen.
"""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from model.adapter import freeze_base
from model.cameras import Cameras
from model.config import ViewDiffConfig
from model.cost.products import Workload
from model.layers.views import Scene
from model.unet import ViewDiffUNet


@dataclass(frozen=True, kw_only=True)
class PassMemory:
    """Bytes of one forward and backward pass, without weights and their gradients."""

    kept: int
    """Alive between forward and backward pass: activations, and the copies of weights in lower precision."""
    weight_copies: int
    """Of these the copies that autocast makes of float32 weights."""
    peak: int
    """The most at any time of the two passes, when every gradient of a weight is given away as soon as it is there."""
    peak_with_gradients: int
    """The same when all of these gradients are held until the end."""


class LiveBytes(TorchDispatchMode):
    """Memory of all tensors that are made under it and still alive, and the most that there was."""

    def __init__(self, parameters: tuple[nn.Parameter, ...] = ()) -> None:
        super().__init__()
        self.total = self.peak = self.of_copies = 0
        self.of_gradients = self.peak_with_gradients = 0
        self._alive: dict[int, int] = {}
        self._weights = {_key(parameter) for parameter in parameters}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_copy = func is torch.ops.aten._to_copy.default and _key(args[0]) in self._weights
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._add(tensor, is_copy=is_copy)
        self.peak = max(self.peak, self.total - self.of_gradients)
        self.peak_with_gradients = max(self.peak_with_gradients, self.total)
        return result

    def hold_gradient(self, parameter: Tensor) -> None:
        """Call it when a parameter has got its gradient."""
        assert parameter.grad is not None
        self.of_gradients += self._alive.get(_key(parameter.grad), 0)

    def without(self, *tensors: Tensor) -> int:
        """Bytes alive now, those of `tensors` and of what shares their memory left out."""
        return self.total - sum(self._alive.get(key, 0) for key in {_key(tensor) for tensor in tensors})

    def _add(self, tensor: Tensor, *, is_copy: bool) -> None:
        key, storage = _key(tensor), tensor.untyped_storage()
        if key in self._alive or key in self._weights:
            return
        num_bytes = storage.nbytes()
        self._alive[key] = num_bytes
        self.total += num_bytes
        self.of_copies += num_bytes * is_copy
        weakref.finalize(storage, self._remove, key, is_copy)

    def _remove(self, key: int, is_copy: bool) -> None:
        num_bytes = self._alive.pop(key)
        self.total -= num_bytes
        self.of_copies -= num_bytes * is_copy


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def pass_memory(
    unet_config: dict[str, Any], config: ViewDiffConfig, workload: Workload, *, bfloat16: bool, adapter: bool
) -> PassMemory:
    """Of a network on `workload`; `bfloat16` is autocast's, `adapter` says that the base model is frozen."""
    with FakeTensorMode():
        network = ViewDiffUNet(UNet2DConditionModel.from_config(unet_config), config).train()
        if adapter:
            freeze_base(network)
        parameters = tuple(network.parameters())
        stock = network.unet.config
        inputs = fake_inputs(workload, text_channels=stock.cross_attention_dim, latent_channels=stock.in_channels)
        with LiveBytes(parameters) as live:
            for parameter in parameters:
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(live.hold_gradient)
            with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
                output = network(**inputs)
            kept, copies = live.total, live.of_copies
            output.float().square().mean().backward()
        return PassMemory(kept=kept, weight_copies=copies, peak=live.peak, peak_with_gradients=live.peak_with_gradients)


def fake_inputs(
    workload: Workload, *, text_channels: int, latent_channels: int = 4, training: bool = True
) -> dict[str, Any]:
    """Arguments of the network's forward, to be made under FakeTensor mode; in training with noise."""
    num_samples, num_views, (height, width) = workload.num_samples, workload.num_views, workload.latent_size
    cameras = Cameras(
        torch.eye(4).expand(num_samples, num_views, 4, 4), torch.eye(3).expand(num_samples, num_views, 3, 3), (64, 64)
    )
    inputs: dict[str, Any] = {
        "latents": torch.zeros(num_samples, num_views, latent_channels, height, width),
        "timesteps": torch.zeros(num_samples, num_views, dtype=torch.long),
        "text": torch.zeros(num_samples, workload.text_length, text_channels),
        "scene": Scene(cameras, torch.zeros(num_samples, 2, 3), torch.zeros(num_samples, num_views, 2)),
    }
    if not training:
        return inputs
    seeds = torch.zeros(num_samples, dtype=torch.long)
    return inputs | {"hidden_views": workload.hidden_views, "opacity_noise_seeds": seeds}
