"""A small stand-in for Stable Diffusion (Rombach et al. 2022): the same five parts of the same classes, for pipelines
without downloads.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from model.base.stable_diffusion import BaseModel
from model.config import STAND_IN_TIMESTEPS, TinyBaseConfig

BYTE_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"-_()/&%+#"
START, END = "<|startoftext|>", "<|endoftext|>"
FIRST_LOG_VARIANCE = -6.0  # of the autoencoder's posterior: narrow, so that noise does not hide what there is to learn


def build_tiny_base(config: TinyBaseConfig, *, image_size: int, words: Iterable[str], seed: int) -> BaseModel:
    """An untrained stand-in for pictures of `image_size`² pixels, random but a function of `seed` alone; `words` are
    those that its tokenizer knows whole.

    It predicts velocity (Salimans and Ho 2022, as Stable Diffusion 2.1's 768-pixel model does): a short training then
    has a useful signal at every noise level, where a prediction of the noise has almost none at high noise.
    """
    tokenizer = build_tokenizer(words, max_length=config.text_length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BaseModel(
            vae=_tiny_vae(config, image_size),
            text_encoder=_tiny_text_encoder(config, tokenizer),
            tokenizer=tokenizer,
            unet=tiny_unet(config, image_size),
            scheduler=DDPMScheduler(
                num_train_timesteps=STAND_IN_TIMESTEPS,
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


def _tiny_vae(config: TinyBaseConfig, image_size: int) -> AutoencoderKL:
    levels = len(config.vae_channels)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.vae_channels,
        layers_per_block=1,
        norm_num_groups=1,  # more would normalise differences of colour away
        sample_size=image_size,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )
    _start_as_average(vae)
    return vae


@torch.no_grad()
def _start_as_average(vae: AutoencoderKL) -> None:
    """Let the first three latent channels be the colours, averaged on the way down and repeated on the way up.

    So it is up to one factor per image and way, which comes from the normalisation before the last layer. From random
    weights an autoencoder takes thousands of steps to find the colours. Residual blocks add nothing at first; each
    colour goes with both signs through the activation before a last layer, since silu(x) - silu(-x) = x.
    """
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            if module.conv_shortcut is not None:
                _set_weights(module.conv_shortcut, _identity(module.conv_shortcut), taps=slice(0, 1))
        elif isinstance(module, Upsample2D):
            _set_weights(module.conv, _identity(module.conv))
        elif isinstance(module, Downsample2D):  # padded on the right and below only: these taps are the 2×2 pixels
            _set_weights(module.conv, _identity(module.conv), taps=slice(0, 2))
    both_signs = torch.cat([torch.eye(3), -torch.eye(3)])
    for coder in (vae.encoder, vae.decoder):
        _set_weights(coder.conv_in, both_signs)
        _set_weights(coder.conv_out, both_signs.T)
    channels = vae.config.latent_channels
    _set_weights(vae.post_quant_conv, torch.eye(channels), taps=slice(0, 1))
    _set_weights(vae.quant_conv, torch.diag(torch.tensor([1.0, 0.0]).repeat_interleave(channels)), taps=slice(0, 1))
    vae.quant_conv.bias[channels:] = FIRST_LOG_VARIANCE


def _set_weights(conv: nn.Conv2d, matrix: Tensor, *, taps: slice = slice(1, 2)) -> None:
    """Let the first rows of output channels be `matrix` [rows, columns] times the mean over the kernel's `taps`."""
    rows, columns = matrix.shape
    weight = torch.zeros_like(conv.weight[:rows])
    window = weight[:, :columns, taps, taps]
    window += matrix[:, :, None, None] / window[0, 0].numel()
    conv.weight[:rows] = weight
    conv.bias[:rows] = 0


def _identity(conv: nn.Conv2d) -> Tensor:
    return torch.eye(conv.out_channels, conv.in_channels)


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


def tiny_unet(config: TinyBaseConfig, image_size: int) -> UNet2DConditionModel:
    """The stand-in's U-Net, untrained, for pictures of `image_size`² pixels."""
    levels = len(config.unet_channels)
    return UNet2DConditionModel(
        sample_size=image_size // 2 ** (len(config.vae_channels) - 1),
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
