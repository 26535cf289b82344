"""What the network is told about views besides their pixels (the paper, section 3.1).

`Scene` comes from outside, `ViewContext` is for one call.

The context is built once in `ViewDiffUNet.forward` and reaches each layer as `cross_attention_kwargs={"views": views}`.
Both are frozen and nothing is written into them, and no layer keeps them: state on modules goes wrong with gradient
checkpointing and with two forward passes before one backward pass.

Shape letters: B samples, V views, D channels of the timestep embedding, R rays, S positions on a ray.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from model.cameras import Cameras
from model.config import ProjectionConfig
from model.layers.conditioning import NEUTRAL_INTENSITY
from model.volume.geometry import Geometry

# World units. Shorter sides of a scene are a mistake, and their inverse is no number soon.
MIN_SIDE = 1e-6


class Prepared(NamedTuple):
    """The geometry of a network's layers, and what it was computed from."""

    cameras: Cameras
    scene_bounds: Tensor
    config: ProjectionConfig
    layers: Geometry


@dataclass(frozen=True, eq=False)
class Scene:
    """B samples of V posed views of an object each.

    No gradient reaches the cameras through the layers' geometry. Raises ValueError when bounds or intensity are not of
    a floating-point type; values are checked by `check`.
    """

    cameras: Cameras  # batch shape [B, V]; any image size: a layer resizes them to its own features
    scene_bounds: Tensor  # [B, 2, 3] minimum and maximum corner, world units
    intensity: Tensor  # [B, V, 2] mean and variance of a view's RGB in [0, 1], see model/layers/conditioning.py
    prepared: Prepared | None = None  # what `ViewDiffUNet.prepare` has computed

    def __post_init__(self) -> None:
        for name, values in (("scene_bounds", self.scene_bounds), ("intensity", self.intensity)):
            if values.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"{name}: dtype {values.dtype} must be float32 or float64")

    @classmethod
    def neutral(cls, cameras: Cameras, scene_bounds: Tensor) -> Scene:
        """The scene of views that are to be generated, all with the neutral intensity."""
        return cls(cameras, scene_bounds, scene_bounds.new_tensor(NEUTRAL_INTENSITY).expand(*cameras.shape, 2))

    def map_views(self, change: Callable[[Tensor], Tensor]) -> Scene:
        """The same samples with other views, which `change` makes of each tensor [B, V, ...]; prepared if this is."""
        return self._changed(change, self.scene_bounds)

    def repeat(self, times: int) -> Scene:
        """The samples that often, one copy of all after the other; prepared if this is."""
        return self._changed(lambda x: torch.cat([x] * times), torch.cat([self.scene_bounds] * times))

    def _changed(self, change: Callable[[Tensor], Tensor], scene_bounds: Tensor) -> Scene:
        matrices = change(self.cameras.world_to_camera), change(self.cameras.intrinsics)
        cameras, prepared = Cameras(*matrices, self.cameras.image_size), self.prepared
        if prepared is not None:
            layers = {shape: layer.map_views(change) for shape, layer in prepared.layers.items()}
            prepared = Prepared(cameras, scene_bounds, prepared.config, layers)
        return Scene(cameras, scene_bounds, change(self.intensity), prepared)

    def to(self, device: torch.device | str) -> Scene:
        """The same on `device`, to be prepared anew."""
        matrices = [to_device(values, device) for values in (self.cameras.world_to_camera, self.cameras.intrinsics)]
        cameras = Cameras(matrices[0], matrices[1], self.cameras.image_size)
        return Scene(cameras, to_device(self.scene_bounds, device), to_device(self.intensity, device))

    def check(self) -> Scene:
        """Return self if all values make sense, else raise ValueError naming the first that does not.

        It reads values back from the device, so it belongs where the data is still on the CPU.
        """
        self.cameras.check()
        for name, values in (("scene_bounds", self.scene_bounds), ("intensity", self.intensity)):
            if not bool(torch.isfinite(values).all()):
                raise ValueError(f"{name}: must be finite; some value is NaN or infinite")
        low, high = self.scene_bounds.unbind(-2)
        flat = (high - low < MIN_SIDE).any(-1)
        if bool(flat.any()):
            sample = int(flat.nonzero()[0])
            raise ValueError(
                f"scene_bounds: the maximum corner must lie {MIN_SIDE} above the minimum on every axis; sample "
                f"{sample} has {low[sample].tolist()} and {high[sample].tolist()}"
            )
        return self


@dataclass(frozen=True, eq=False)
class ViewContext:
    """Facts of one denoising call. Batch dimensions that say B*V hold a sample's views next to each other."""

    num_views: int  # V
    latent_size: tuple[int, int]  # (height, width) of the U-Net's input
    conditioning: Tensor  # [B*V, 10] the vector z, see model/layers/conditioning.py
    timestep_embedding: Tensor  # [B*V, D]
    geometry: Geometry  # of all projection layers
    hidden_views: int  # that many last views are left out of the volume: 1 in training, 0 in generation
    opacity_noise: tuple[Tensor, ...] | None  # [B, V, R, S] of each projection layer; None: no noise

    def feature_size(self, num_tokens: int) -> tuple[int, int]:
        """(height, width) of the U-Net's level whose features have `num_tokens` pixels.

        Raises ValueError when the latents have no such level; every level halves height and width exactly.
        """
        height, width = self.latent_size
        while height * width > num_tokens and height % 2 == 0 and width % 2 == 0:
            height, width = height // 2, width // 2
        if height * width != num_tokens:
            raise ValueError(f"views: latents of {self.latent_size} have no level with {num_tokens} tokens")
        return height, width


def reorder_views(values: Tensor, order: Tensor) -> Tensor:
    """Values [B, V, ...] with each sample's views in another order, [B, V] indices."""
    return values[torch.arange(len(order), device=order.device)[:, None], order]


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """`values` on `device`. A copy to a GPU goes through pinned memory, so that nobody waits until it is done."""
    if torch.device(device).type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
