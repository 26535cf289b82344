"""ViewDiffUNet: a stock text-to-image U-Net that denoises several views of one object together.

Shape letters: B samples, V views, C latent channels, h × w latent pixels, L text tokens, D channels.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.augment import augment
from model.cameras import Cameras
from model.conditioning import conditioning_vector
from model.config import ProjectionConfig, ViewDiffConfig
from model.projection import renderer_parameters
from model.views import ViewContext

__all__ = ["ViewDiffConfig", "ViewDiffUNet"]

KIND = "viewdiff-unet"
FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


class ViewDiffUNet(nn.Module):
    """The stock U-Net `unet` with cross-frame attention, conditioning and projection layers.

    Takes `unet` over and augments it in place; its pretrained keys stay as they are under `unet.`.
    Raises ValueError when `config` does not fit the U-Net (see `model.augment.augment`).
    """

    def __init__(self, unet: UNet2DConditionModel, config: ViewDiffConfig) -> None:
        super().__init__()
        augment(unet, config)
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.unet = unet
        self.config = config

    @classmethod
    def meta(cls, unet_config: dict[str, Any], config: ViewDiffConfig) -> Self:
        """The network without values (on the meta device), to count parameters in seconds at any size."""
        with torch.device("meta"):
            return cls(UNet2DConditionModel.from_config(unet_config), config)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        *,
        text: Tensor,
        cameras: Cameras,
        scene_bounds: Tensor,
        intensity: Tensor,
        hidden_views: int = 0,
        opacity_noise_seeds: tuple[int, ...] | None = None,
    ) -> Tensor:
        """Predict noise or velocity (whichever the base model was trained for) of all views: [B, V, C, h, w].

        latents [B, V, C, h, w] scaled and noisy, clean for known views; timesteps [B, V] in [0, 1000), 0 for known
        views; text [B, L, D] caption embeddings; cameras [B, V] of any image size; scene_bounds [B, 2, 3] world units;
        intensity [B, V, 2] mean and variance of RGB in [0, 1]. `hidden_views` last views are left out of the projection
        layers' volumes. `opacity_noise_seeds`, one per sample, turns on the renderer's noise (training). The result has
        the latents' dtype. Raises ValueError naming the first input that does not fit.
        """
        self._check_latents(latents)
        num_samples, num_views = latents.shape[:2]
        text_length = text.shape[1] if text.ndim == 3 else 0
        _check_shape("timesteps", timesteps, (num_samples, num_views))
        _check_shape("text", text, (num_samples, text_length, self.unet.config.cross_attention_dim))
        _check_shape("cameras", cameras, (num_samples, num_views))
        _check_shape("scene_bounds", scene_bounds, (num_samples, 2, 3))
        if not 0 <= hidden_views < num_views:
            raise ValueError(f"hidden_views {hidden_views} must lie in [0, {num_views - 1}] for {num_views} views")
        if opacity_noise_seeds is not None and len(opacity_noise_seeds) != num_samples:
            raise ValueError(f"opacity_noise_seeds: {len(opacity_noise_seeds)} seeds for {num_samples} samples")
        sample = latents.flatten(0, 1).to(self.unet.dtype)
        timesteps = timesteps.flatten()
        views = ViewContext(
            num_views=num_views,
            latent_size=(latents.shape[-2], latents.shape[-1]),
            conditioning=conditioning_vector(cameras, intensity).flatten(0, 1).to(sample.dtype),
            timestep_embedding=self.unet.time_embedding(self.unet.get_time_embed(sample, timesteps)),
            cameras=cameras,
            scene_bounds=scene_bounds,
            hidden_views=hidden_views,
            opacity_noise_seeds=opacity_noise_seeds,
        )
        predicted = self.unet(
            sample,
            timesteps,
            encoder_hidden_states=text.to(sample.dtype).repeat_interleave(num_views, dim=0),
            cross_attention_kwargs={"views": views},
            return_dict=False,
        )[0]
        return predicted.unflatten(0, (num_samples, num_views)).to(latents.dtype)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All parameters: the volume renderer's own layers as "renderer" (they have their own learning rate), the
        others as "unet". A group may be empty.
        """
        renderer = list(renderer_parameters(self))
        chosen = {id(parameter) for parameter in renderer}
        return {"unet": [p for p in self.parameters() if id(p) not in chosen], "renderer": renderer}

    def save_pretrained(self, folder: Path) -> None:
        """Write weights (safetensors) and config.json into `folder`; config.json last, so that it marks completion."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in self.state_dict().items()}, folder / WEIGHTS_FILE)
        unet_config = {key: value for key, value in self.unet.config.items() if not key.startswith("_")}
        record = {
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            "unet": unet_config,
            "viewdiff": dataclasses.asdict(self.config),
        }
        (folder / CONFIG_FILE).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """The network that `save_pretrained` wrote, on the CPU.

        Raises ValueError when the folder holds something else, a newer format, or weights that do not fit its config.
        """
        record = _read_config(folder / CONFIG_FILE)
        try:
            network = cls(UNet2DConditionModel.from_config(record["unet"]), _parse_config(record["viewdiff"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / CONFIG_FILE}: does not describe a network ({error})") from error
        try:
            weights = load_file(folder / WEIGHTS_FILE)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{folder / WEIGHTS_FILE}: cannot be read ({error}); save the network again") from error
        _check_fit(folder, network.state_dict(), weights)
        network.load_state_dict(weights)
        return network

    def _check_latents(self, latents: Tensor) -> None:
        channels = self.unet.config.in_channels
        if latents.ndim != 5 or 0 in latents.shape[:2] or latents.shape[2] != channels:
            raise ValueError(
                f"latents: shape {tuple(latents.shape)} must be [samples ≥ 1, views ≥ 1, {channels}, height, width]"
            )
        height, width = latents.shape[-2:]
        factor = 2**self.unet.num_upsamplers
        if height % factor or width % factor:
            raise ValueError(f"latents: size {(height, width)} must be divisible by {factor}, the U-Net's downsampling")


def _check_shape(name: str, value: Tensor | Cameras, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: shape {tuple(value.shape)} must be {shape} to fit the latents and the U-Net")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); give a folder that save_pretrained wrote") from error
    kind = record.get("kind") if isinstance(record, dict) else None
    if kind != KIND:
        raise ValueError(f"{path}: kind is {kind!r}, not {KIND!r}; give a folder that save_pretrained wrote")
    if record.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format version {record.get('format_version')}, but this program reads {FORMAT_VERSION}; update it"
        )
    return record


def _parse_config(values: dict[str, Any]) -> ViewDiffConfig:
    projection = values["projection"]
    return ViewDiffConfig(
        **{
            **values,
            "projection": None if projection is None else ProjectionConfig(**_lists_to_tuples(projection)),
        }
    )


def _lists_to_tuples(value: Any) -> Any:
    """JSON has no tuples."""
    if isinstance(value, dict):
        return {key: _lists_to_tuples(item) for key, item in value.items()}
    return tuple(_lists_to_tuples(item) for item in value) if isinstance(value, list) else value


def _check_fit(folder: Path, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Raise ValueError naming the first keys that are missing, not known or of another shape."""
    differences = [f"missing {key}" for key in expected if key not in found]
    differences += [f"unknown {key}" for key in found if key not in expected]
    differences += [
        f"{key} {tuple(found[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in found and found[key].shape != value.shape
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(
            f"{folder}: weights of another architecture than its {CONFIG_FILE}: {'; '.join(differences[:3])}{more}"
        )
