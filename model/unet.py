"""ViewDiffUNet: a stock text-to-image U-Net that denoises several views of one object together (the paper, figure 2).

Shape letters: B samples, V views, C latent channels, h × w latent pixels, L text tokens, D channels.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from model.config import ViewDiffConfig
from model.layers.augment import augment
from model.layers.conditioning import NEUTRAL_INTENSITY, conditioning_vector
from model.layers.projection import renderer_parameters
from model.layers.views import Prepared, Scene, ViewContext
from model.pretrained import read_network, write_network
from model.volume.geometry import Geometry, LayerShape, compute_geometry
from model.volume.rendering import opacity_noise

__all__ = ["ViewDiffConfig", "ViewDiffUNet"]


class ViewDiffUNet(nn.Module):
    """The stock U-Net `unet` with cross-frame attention, conditioning and projection layers.

    Takes `unet` over and augments it in place; its pretrained keys stay as they are under `unet.`.
    Raises ValueError when `config` does not fit the U-Net (see `model.layers.augment.augment`).
    """

    def __init__(self, unet: UNet2DConditionModel, config: ViewDiffConfig) -> None:
        super().__init__()
        self._places = augment(unet, config)
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.unet = unet
        self.config = config

    @classmethod
    def meta(cls, unet_config: dict[str, Any], config: ViewDiffConfig) -> Self:
        """The network without values (on the meta device), to count parameters in seconds at any size."""
        with torch.device("meta"):
            return cls(UNet2DConditionModel.from_config(unet_config), config)

    @property
    def prediction_type(self) -> str | None:
        """What the base model that it was trained on predicts ("epsilon" or "v_prediction"); None where its config does
        not say so: of a network that was not trained, or was written before this was noted.
        """
        return self.unet.config.get("prediction_type")

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        *,
        text: Tensor,
        scene: Scene,
        hidden_views: int = 0,
        opacity_noise_seeds: Tensor | None = None,
    ) -> Tensor:
        """Predict noise or velocity (whichever the base model was trained for) of all views: [B, V, C, h, w].

        latents [B, V, C, h, w] scaled and noisy, clean for known views; timesteps [B, V] in [0, 1000), 0 for known
        views; text [B, L, D] caption embeddings; scene of B samples of V views, prepared or not. `hidden_views` last
        views are left out of the projection layers' volumes. `opacity_noise_seeds` int64 [B] turns on the renderer's
        noise (training). The result has the latents' dtype. Raises ValueError naming the first input that does not fit.
        """
        self._check(latents, timesteps, text, scene)
        num_samples, num_views = latents.shape[:2]
        if opacity_noise_seeds is not None:
            dtype, shape = opacity_noise_seeds.dtype, tuple(opacity_noise_seeds.shape)
            if dtype != torch.int64 or shape != (num_samples,):
                raise ValueError(f"opacity_noise_seeds: {dtype} {shape} must be torch.int64 ({num_samples},)")
        if not 0 <= hidden_views < num_views:
            raise ValueError(f"hidden_views {hidden_views} must lie in [0, {num_views - 1}] for {num_views} views")
        latent_size = (latents.shape[-2], latents.shape[-1])
        sample, timesteps = latents.flatten(0, 1).to(self.unet.dtype), timesteps.flatten()
        views = ViewContext(
            num_views=num_views,
            latent_size=latent_size,
            conditioning=self._conditioning(scene).flatten(0, 1).to(sample.dtype),
            timestep_embedding=self.unet.time_embedding(self.unet.get_time_embed(sample, timesteps)),
            geometry=self._geometry(scene, latent_size),
            hidden_views=hidden_views,
            opacity_noise=self._opacity_noise(opacity_noise_seeds, num_views, latent_size),
        )
        predicted = self.unet(
            sample,
            timesteps,
            encoder_hidden_states=text.to(sample.dtype).repeat_interleave(num_views, dim=0),
            cross_attention_kwargs={"views": views},
            return_dict=False,
        )[0]
        return predicted.unflatten(0, (num_samples, num_views)).to(latents.dtype)

    def prepare(self, scene: Scene, latent_size: tuple[int, int]) -> Scene:
        """The scene with the geometry of all projection layers, for latents of (height, width) pixels.

        Whoever calls the network several times for one scene spares it the geometry. Raises ValueError for cameras or
        bounds that make no sense if they are on the CPU; elsewhere reading them would make the host wait for the
        device, so there `Scene.check` belongs before the copy.
        """
        values = scene.scene_bounds
        if type(values) is Tensor and values.device.type == "cpu" and not torch.compiler.is_compiling():
            scene.check()
        shapes = self._layer_shapes(latent_size)
        layers = compute_geometry(scene.cameras, scene.scene_bounds, shapes, self.config.projection)
        return replace(scene, prepared=Prepared(scene.cameras, scene.scene_bounds, self.config.projection, layers))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All parameters that are trained: the volume renderer's own layers as "renderer" (they have their own learning
        rate), the others as "unet". A group may be empty.
        """
        renderer = list(renderer_parameters(self))
        chosen = {id(parameter) for parameter in renderer}
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return {
            "unet": [p for p in trained if id(p) not in chosen],
            "renderer": [p for p in renderer if p.requires_grad],
        }

    def save_pretrained(self, folder: Path | str) -> None:
        """Write weights (safetensors) and config.json into `folder`; config.json last, so that it marks completion."""
        write_network(folder, self.unet, self.config, self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Self:
        """The network that `save_pretrained` wrote, on the CPU.

        Raises ValueError when the folder holds something else, a newer format, weights that do not fit its config, are
        not as they were written, or are not finite.
        """
        return read_network(folder, cls)

    def _geometry(self, scene: Scene, latent_size: tuple[int, int]) -> Geometry:
        """Of all projection layers. Raises ValueError when the scene was prepared for something else."""
        prepared = scene.prepared or self.prepare(scene, latent_size).prepared
        assert prepared is not None
        is_its_own = prepared.cameras is scene.cameras and prepared.scene_bounds is scene.scene_bounds
        has_all = all(shape in prepared.layers for shape in self._layer_shapes(latent_size))
        if not (is_its_own and has_all and prepared.config == self.config.projection):
            raise ValueError(
                f"scene: was prepared for other cameras, bounds, latents than {latent_size}, or a network "
                "with other settings; prepare it again"
            )
        return prepared.layers

    def _layer_shapes(self, latent_size: tuple[int, int]) -> list[LayerShape]:
        """Of the projection layers by their index."""
        height, width = latent_size
        return [LayerShape(grid_size, (height >> level, width >> level)) for grid_size, level in self._places]

    def _conditioning(self, scene: Scene) -> Tensor:
        """The vector z [B, V, 10], without what the config leaves out."""
        intensity, left_out = scene.intensity, self.config.without
        if "intensity" in left_out:
            intensity = torch.stack([torch.full_like(intensity[..., 0], value) for value in NEUTRAL_INTENSITY], dim=-1)
        z = conditioning_vector(scene.cameras, intensity)
        return torch.zeros_like(z) if "conditioning" in left_out else z

    def _opacity_noise(
        self, seeds: Tensor | None, num_views: int, latent_size: tuple[int, int]
    ) -> tuple[Tensor, ...] | None:
        """[B, V, R, S] of each projection layer by its index."""
        if seeds is None or not self._places:
            return None
        projection = self.config.projection
        positions = projection.num_samples * (2 if projection.background else 1)
        rays = [math.prod(shape.feature_size) for shape in self._layer_shapes(latent_size)]
        noise = opacity_noise(seeds, [num_views * count * positions for count in rays])
        return tuple(part.view(-1, num_views, count, positions) for part, count in zip(noise, rays, strict=True))

    def _check(self, latents: Tensor, timesteps: Tensor, text: Tensor, scene: Scene) -> None:
        """Raise ValueError naming the first shape that does not fit."""
        channels = self.unet.config.in_channels
        if latents.ndim != 5 or 0 in latents.shape or latents.shape[2] != channels:
            raise ValueError(
                f"latents: shape {tuple(latents.shape)} must be [samples ≥ 1, views ≥ 1, {channels}, height, width]"
            )
        height, width = latents.shape[-2:]
        factor = 2**self.unet.num_upsamplers
        if height % factor or width % factor:
            raise ValueError(f"latents: size {(height, width)} must be divisible by {factor}, the U-Net's downsampling")
        batch = tuple(latents.shape[:2])
        text_shape = (batch[0], text.shape[1] if text.ndim == 3 else 0, self.unet.config.cross_attention_dim)
        if not latents.is_floating_point():
            raise ValueError(f"latents: dtype {latents.dtype} must be a floating-point type")
        for name, value, shape in (
            ("timesteps", timesteps, batch),
            ("text", text, text_shape),
            ("cameras", scene.cameras, batch),
            ("scene_bounds", scene.scene_bounds, (batch[0], 2, 3)),
            ("intensity", scene.intensity, (*batch, 2)),
        ):
            if tuple(value.shape) != shape:
                raise ValueError(f"{name}: shape {tuple(value.shape)} must be {shape} to fit the latents and the U-Net")
