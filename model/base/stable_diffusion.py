"""The frozen parts around the U-Net, and the pretrained U-Net itself: Stable Diffusion, or a small stand-in (the paper,
section 3, "latent diffusion").

`load_base` reads a diffusers folder or hub id (Stable Diffusion 1.x and 2.x), `save_base` writes a folder. The stand-in
is made by model/base/stand_in.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from model.base.checks import check_configs, check_values, check_weights
from model.base.folder import DiffusersFolder, fetch_weights, find_folder, first_line, open_folder

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class BaseModel:
    """A text-to-image latent diffusion model of the Stable Diffusion family, part by part.

    Raises RuntimeError (from the parts) when tensors are not on the parts' device.
    """

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel
    scheduler: DDPMScheduler

    @property
    def downsampling(self) -> int:
        """Image pixels per latent pixel along a side."""
        return downsampling(self.vae.config)

    @property
    def image_size(self) -> int:
        """Side of the square images that the U-Net was trained on, pixels."""
        return self.unet.config.sample_size * self.downsampling

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Embeddings [N, L, D] of N captions, padded or cut to the tokenizer's length. "" is the empty caption."""
        tokens = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        return self.text_encoder(tokens.input_ids.to(self.text_encoder.device)).last_hidden_state

    def encode_moments(self, images: Tensor) -> Tensor:
        """Mean and log variance [N, 2C, h, w] of the latents of images [N, 3, H, W] in [0, 1], unscaled."""
        return self.vae.encode(images * 2 - 1).latent_dist.parameters

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """`encode_moments` of pictures uint8 [N, 3, H, W], on the autoencoder's device."""
        return self.encode_moments(pictures.to(self.vae.device).float() / 255)

    def latents_from_moments(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scaled latents [N, C, h, w], as the U-Net takes them.

        A draw from the autoencoder's posterior with `noise` [N, C, h, w] ~ N(0, 1); its mean without.
        """
        mean, log_variance = moments.chunk(2, dim=1)
        latents = mean if noise is None else mean + torch.exp(0.5 * log_variance.clamp(-30, 20)) * noise
        return scale_latents(latents, self.vae)

    def decode(self, latents: Tensor) -> Tensor:
        """Images [N, 3, H, W] in [0, 1] of scaled latents [N, C, h, w]."""
        images = self.vae.decode(
            latents / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)
        ).sample
        return (images / 2 + 0.5).clamp(0, 1)

    def decode_pictures(self, latents: Tensor) -> np.ndarray:
        """Pictures uint8 [N, H, W, 3] of scaled latents [N, C, h, w]."""
        images = self.decode(latents).float() * 255
        pictures: np.ndarray = images.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return pictures

    def to(self, device: torch.device | str) -> BaseModel:
        """The same parts, moved to `device`."""
        for part in (self.vae, self.text_encoder, self.unet):
            part.to(device)
        return self

    def coders_to(self, device: torch.device | str) -> BaseModel:
        """The same parts; autoencoder and text encoder moved to `device`, the U-Net left where it is.

        Generation with a multi-view U-Net has no use for the stock one, the largest part of all.
        """
        self.vae.to(device)
        self.text_encoder.to(device)
        return self

    def frozen(self) -> BaseModel:
        """The same parts, in evaluation mode and without gradients."""
        for part in (self.vae, self.text_encoder, self.unet):
            part.requires_grad_(False).eval()
        return self


def prediction_type(folder: Path) -> str:
    """What the U-Net of a folder that `save_base` wrote predicts: "epsilon", the noise, or "v_prediction", velocity."""
    return str(DDPMScheduler.load_config(folder, subfolder="scheduler")["prediction_type"])


def downsampling(vae_config: Mapping[str, Any]) -> int:
    """Image pixels per latent pixel along a side, of the autoencoder with this config."""
    return 2 ** (len(vae_config["block_out_channels"]) - 1)


def side_multiple(vae_config: Mapping[str, Any], unet_config: Mapping[str, Any]) -> int:
    """Pictures must have sides that are multiples of this many pixels: autoencoder and U-Net halve them level by
    level.
    """
    return downsampling(vae_config) * 2 ** (len(unet_config["block_out_channels"]) - 1)


def scale_latents(latents: Tensor, vae: AutoencoderKL) -> Tensor:
    """Latents of the autoencoder [..., C, h, w], shifted and scaled to about unit variance as the U-Net takes them."""
    return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def load_base(source: str | Path, *, revision: str | None = None) -> BaseModel:
    """The base model in a diffusers folder, or with that id on the hub, in float32 whatever its files hold.

    Only safetensors weights are read: plain ones, in shards, or a variant's ("fp16") where the plain ones are absent.
    Raises ValueError, in one line, when it is no Stable Diffusion 1.x or 2.x, or a part is missing, damaged or of
    another shape.
    """
    folder = open_folder(source, revision)
    parts = check_configs(folder)
    fetch_weights(folder)
    check_weights(folder, parts)
    return BaseModel(
        vae=_load_part(folder, "vae", AutoencoderKL),
        text_encoder=_load_part(folder, "text_encoder", CLIPTextModel),
        tokenizer=parts.tokenizer,
        unet=_load_part(folder, "unet", UNet2DConditionModel),
        scheduler=parts.scheduler,
    )


def check_base(source: str | Path) -> None:
    """Check a folder as `load_base` does, but for the values of the weights: it reads their files' headers alone.

    What may be an id on the hub is not looked at. Raises ValueError as `load_base`.
    """
    folder = find_folder(source)
    if folder is not None:
        check_weights(folder, check_configs(folder))


def _load_part(folder: DiffusersFolder, part: str, kind: type[Module]) -> Module:
    transformers_logging.disable_progress_bar()
    dtype = {"dtype" if part == "text_encoder" else "torch_dtype": torch.float32}
    try:
        module, loading = kind.from_pretrained(
            folder.path,
            subfolder=part,
            variant=folder.weights(part).variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **dtype,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise folder.unfit(f": cannot read its {part} ({first_line(error)})") from error
    # The headers were checked; a library that does not find its weights in them would leave them random.
    lacking = [*loading["missing_keys"], *loading["mismatched_keys"]]
    if lacking:
        raise folder.unfit(f": its {part} was read without {sorted(map(str, lacking))[0]}")
    check_values(folder, part, module)
    return module


def save_base(base: BaseModel, folder: Path) -> None:
    """Write the base model as a diffusers folder: one subfolder per part and model_index.json."""
    for name in ("vae", "tokenizer", "unet", "scheduler"):
        getattr(base, name).save_pretrained(folder / name)
    # As its own save_pretrained does, which takes seconds to import DeepSpeed first.
    base.text_encoder.config.save_pretrained(folder / "text_encoder")
    weights = folder / "text_encoder" / "model.safetensors"
    safetensors.torch.save_model(base.text_encoder, str(weights), metadata={"format": "pt"})
    index = {
        "_class_name": "StableDiffusionPipeline",
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
