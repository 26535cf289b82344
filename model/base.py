"""The frozen parts around the U-Net, and the pretrained U-Net itself: Stable Diffusion, or a small stand-in.

`load_base` reads a diffusers folder or hub id (Stable Diffusion 1.x and 2.x); `build_tiny_base` makes the same five
parts of the same classes, random and small, for pipelines that must run without downloaded weights. Both give a
`BaseModel`, and `save_base` writes either as a diffusers folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from model.config import TinyBaseConfig

BYTE_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"-_()/&%+#"
START, END = "<|startoftext|>", "<|endoftext|>"


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
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

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

    def to(self, device: torch.device | str) -> BaseModel:
        """The same parts, moved to `device`."""
        for part in (self.vae, self.text_encoder, self.unet):
            part.to(device)
        return self

    def frozen(self) -> BaseModel:
        """The same parts, in evaluation mode and without gradients."""
        for part in (self.vae, self.text_encoder, self.unet):
            part.requires_grad_(False).eval()
        return self


def scale_latents(latents: Tensor, vae: AutoencoderKL) -> Tensor:
    """Latents of the autoencoder [..., C, h, w], shifted and scaled to about unit variance as the U-Net takes them."""
    return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def load_base(source: str | Path, *, revision: str | None = None) -> BaseModel:
    """The base model in a diffusers folder, or with that id on the hub. Only safetensors weights are read.

    Raises ValueError naming the part that is missing or cannot be read.
    """
    if Path(source).is_dir():
        transformers_logging.disable_progress_bar()  # downloads from the hub keep theirs
    parts = {
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "tokenizer": CLIPTokenizer,
        "unet": UNet2DConditionModel,
        "scheduler": DDPMScheduler,
    }
    loaded = {}
    for name, kind in parts.items():
        weights = {"use_safetensors": True} if name in ("vae", "text_encoder", "unet") else {}
        try:
            loaded[name] = kind.from_pretrained(str(source), subfolder=name, revision=revision, **weights)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"base model {source!s}: cannot read its {name} ({str(error).splitlines()[0]}); "
                "give a diffusers folder or a hub id of Stable Diffusion 1.x or 2.x with safetensors weights"
            ) from error
    return BaseModel(**loaded)


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


def build_tiny_base(config: TinyBaseConfig, *, words: Iterable[str], seed: int) -> BaseModel:
    """An untrained stand-in, random but a function of `seed` alone; `words` are those that its tokenizer knows whole.

    It predicts velocity (Salimans and Ho 2022, as Stable Diffusion 2.1's 768-pixel model does): a short training then
    has a useful signal at every noise level, where a prediction of the noise has almost none at high noise.
    """
    tokenizer = build_tokenizer(words, max_length=config.text_length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BaseModel(
            vae=_tiny_vae(config),
            text_encoder=_tiny_text_encoder(config, tokenizer),
            tokenizer=tokenizer,
            unet=tiny_unet(config),
            scheduler=DDPMScheduler(
                num_train_timesteps=1000,
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                prediction_type="v_prediction",
                clip_sample=False,
                steps_offset=1,
            ),
        )


def build_tokenizer(words: Iterable[str], *, max_length: int) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer whose merges build each of `words` whole; other text falls back to characters."""
    vocabulary = [*BYTE_CHARACTERS, *(character + "</w>" for character in BYTE_CHARACTERS)]
    merges: list[tuple[str, str]] = []
    for word in sorted({word.lower() for word in words if word}):
        pieces = [*word[:-1], word[-1] + "</w>"]
        left = pieces[0]
        for right in pieces[1:]:
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
            if left not in vocabulary:
                vocabulary.append(left)
    tokens = {token: number for number, token in enumerate([*vocabulary, START, END])}
    return CLIPTokenizer(vocab=tokens, merges=merges, model_max_length=max_length)


def _tiny_vae(config: TinyBaseConfig) -> AutoencoderKL:
    levels = len(config.vae_channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.vae_channels,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=config.image_size,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def _tiny_text_encoder(config: TinyBaseConfig, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text_channels,
            intermediate_size=2 * config.text_channels,
            projection_dim=config.text_channels,
            num_hidden_layers=2,
            num_attention_heads=config.text_channels // 32,
            max_position_embeddings=config.text_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tiny_unet(config: TinyBaseConfig) -> UNet2DConditionModel:
    """The stand-in's U-Net, untrained."""
    levels = len(config.unet_channels)
    return UNet2DConditionModel(
        sample_size=config.image_size // 2 ** (len(config.vae_channels) - 1),
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        block_out_channels=config.unet_channels,
        layers_per_block=1,
        cross_attention_dim=config.text_channels,
        attention_head_dim=tuple(channels // config.head_channels for channels in config.unet_channels),
        norm_num_groups=16,
        use_linear_projection=True,
    )
