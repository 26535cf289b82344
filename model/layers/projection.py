"""The projection layer: it puts 3D knowledge into a 2D U-Net (the paper, section 3.2 and figure 3).

Features of all views are compressed, unprojected into one volume, refined there by a 3D CNN, rendered again from every
view and expanded to the U-Net's channels, so what the views get back agrees in 3D.

Shape letters: B samples, V views, C channels of the U-Net, K channels of the volume, h × w pixels, L = h·w tokens,
G voxels per side, D channels of the timestep embedding.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import ProjectionConfig
from model.layers.views import ViewContext
from model.volume.filling import MeanAggregator, ViewAggregator
from model.volume.geometry import LayerShape
from model.volume.rendering import Rendered, VolumeRenderer

# Of the 3D CNN's normalisations, with one channel a group.
GROUP_NORM_EPSILON = 1e-5


class ResnetBlock3d(nn.Module):
    """A residual block of two 3×3×3 convolutions, with the time added between them.

    The second normalisation, of each channel alone, takes the time out again but for rounding: as in the published
    model, see docs/decisions/008.
    """

    def __init__(self, in_channels: int, out_channels: int, timestep_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(in_channels, in_channels, eps=GROUP_NORM_EPSILON)
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.timestep = nn.Linear(timestep_channels, out_channels)
        self.norm2 = nn.GroupNorm(out_channels, out_channels, eps=GROUP_NORM_EPSILON)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, volume: Tensor, timestep_embedding: Tensor) -> Tensor:
        """Volume [B, K, G, G, G] and timestep embedding [B, D] -> [B, K_out, G, G, G]."""
        hidden = self.conv1(F.silu(self.norm1(volume)))
        hidden = hidden + self.timestep(F.silu(timestep_embedding))[..., None, None, None]
        return self.shortcut(volume) + self.conv2(F.silu(self.norm2(hidden)))


class VolumeRefiner(nn.Module):
    """The time-conditioned 3D CNN: one ResNet block for one level of channels, a small U-Net for more.

    A U-Net level is a block, the next level on half the voxels per side, and a block on both results.
    """

    def __init__(self, channels: tuple[int, ...], timestep_channels: int) -> None:
        super().__init__()
        outer, *inner = channels
        self.enter = ResnetBlock3d(outer, outer, timestep_channels)
        self.inner: VolumeRefiner | None = None
        if inner:
            self.down = nn.Conv3d(outer, inner[0], 3, stride=2, padding=1)
            self.inner = VolumeRefiner(tuple(inner), timestep_channels)
            self.up = nn.Conv3d(inner[0], outer, 3, padding=1)
            self.leave = ResnetBlock3d(2 * outer, outer, timestep_channels)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and so of the volume that it takes."""
        return self.enter.conv1.weight.dtype

    def forward(self, volume: Tensor, timestep_embedding: Tensor) -> Tensor:
        """Volume [B, K, G, G, G] and timestep embedding [B, D] -> [B, K, G, G, G]."""
        volume = self.enter(volume, timestep_embedding)
        if self.inner is None:
            return volume
        coarse = self.inner(self.down(volume), timestep_embedding)
        coarse = self.up(F.interpolate(coarse, scale_factor=2.0, mode="nearest"))
        return self.leave(torch.cat([volume, coarse], dim=1), timestep_embedding)


def compressor(channels: int, config: ProjectionConfig) -> nn.Module:
    """Maps features [N, C, h, w] to [N, K, h, w]."""
    K = config.feature_channels
    if config.compress == "pointwise":
        return nn.Conv2d(channels, K, 1)
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, K, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(K, K, 1),
    )


def expander(feature_channels: int, channels: int) -> nn.Sequential:
    """Maps rendered tokens [N, L, K] to [N, L, C]."""
    return nn.Sequential(
        nn.Linear(feature_channels, feature_channels),
        nn.ReLU(),
        nn.Linear(feature_channels, channels),
        nn.ReLU(),
        nn.Linear(channels, channels),
    )


class ProjectionLayer(nn.Module):
    """Replaces the views' features by what a volume, filled from them, shows from the same cameras.

    The last `hidden_views` views are left out of the volume, but rendered like the others. `layer_index` is the layer's
    place among those of the network.
    """

    def __init__(
        self, channels: int, grid_size: int, timestep_channels: int, config: ProjectionConfig, layer_index: int
    ) -> None:
        super().__init__()
        K = config.feature_channels
        self.grid_size = grid_size
        self.layer_index = layer_index
        self.recompute = config.recompute_volumes
        self.compress = compressor(channels, config)
        self.aggregator = ViewAggregator(K, timestep_channels) if config.aggregation == "learned" else MeanAggregator()
        self.refiner = VolumeRefiner(config.refine_channels, timestep_channels)
        self.renderer = VolumeRenderer(K)
        self.expand_foreground = expander(K, channels)
        self.expand_background: nn.Module = expander(K, channels) if config.background else nn.Linear(K, channels)

    def forward(self, tokens: Tensor, height: int, width: int, views: ViewContext) -> Tensor:
        """Tokens [B*V, L, C] of features with height × width pixels -> [B*V, L, C].

        Raises ValueError when no view is left to fill the volume.
        """
        num_visible = views.num_views - views.hidden_views
        if num_visible < 1:
            raise ValueError(
                f"projection: {views.hidden_views} of {views.num_views} views are hidden; at least one must be visible"
            )
        visible = tokens.unflatten(0, (-1, views.num_views))[:, :num_visible]  # [B, V', L, C]
        compressed = self.compress(visible.flatten(0, 1).mT.unflatten(-1, (height, width)))
        compressed = compressed.unflatten(0, (-1, num_visible))
        # Coordinates and sums along rays need float32 whatever the rest of the network computes in.
        with torch.autocast(tokens.device.type, enabled=False):
            if self.recompute and torch.is_grad_enabled():
                rendered = checkpoint(
                    self._through_volume, compressed, views, use_reentrant=False, preserve_rng_state=False
                )
            else:
                rendered = self._through_volume(compressed, views)
        features, opacity = (part.flatten(0, 1).flatten(-2).mT.to(tokens.dtype) for part in rendered[:2])
        foreground, background = self.expand_foreground(features), self.expand_background(features)
        return torch.lerp(background, foreground, opacity.to(foreground.dtype))

    def _through_volume(self, features: Tensor, views: ViewContext) -> Rendered:
        """Compressed features [B, V', K, h, w] of the visible views -> what all V views see of their volume."""
        num_visible, image_size = features.shape[1], (features.shape[-2], features.shape[-1])
        geometry = views.geometry[LayerShape(self.grid_size, image_size)]
        dtype = self.refiner.dtype  # of the weights; under autocast the embedding may come in another
        timesteps = views.timestep_embedding.to(dtype).unflatten(0, (-1, views.num_views))
        visible = geometry.voxels.map_views(lambda x: x[:, :num_visible])
        volume = self.aggregator(features, visible, timesteps[:, :num_visible])
        # The last view is never a known one, so its timestep is that of the noise.
        volume = self.refiner(volume.unflatten(-1, (self.grid_size,) * 3).to(dtype), timesteps[:, -1])
        noise = None if views.opacity_noise is None else views.opacity_noise[self.layer_index]
        return self.renderer(volume, geometry.rays, image_size, noise)


def renderer_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of every volume renderer inside `module`, which train at their own learning rate."""
    for child in module.modules():
        if isinstance(child, VolumeRenderer):
            yield from child.parameters()
