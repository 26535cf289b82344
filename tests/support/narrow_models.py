"""Stable Diffusions of the true architectures with a hundredth of the weights, saved as folders of the hub are.

Depths, kinds of blocks, latents, tokens and schedules are those of the published models; channels are fewer, and the
weights are random, a function of the seed. Files have the names and keys of the published folders, which are older than
those that today's libraries write: see `_hub_weights`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

WORDS = ("a", "photo", "of", "an", "the", "apple", "bench", "hydrant", "teddybear", "toy", "red", "green", "blue")
START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 77
NUM_LEVELS = 4

UNET_CONFIG: Mapping[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.8.0",
    "act_fn": "silu",
    "block_out_channels": [32, 64, 128, 128],
    "center_input_sample": False,
    "cross_attention_dim": 64,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 8,
    "out_channels": 4,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
VAE_CONFIG: Mapping[str, Any] = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.8.0",
    "act_fn": "silu",
    "block_out_channels": [16, 32, 64, 64],
    "down_block_types": ["DownEncoderBlock2D"] * NUM_LEVELS,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "out_channels": 3,
    "up_block_types": ["UpDecoderBlock2D"] * NUM_LEVELS,
}
TEXT_CONFIG: Mapping[str, Any] = {
    "_name_or_path": "hf-models/stable-diffusion/text_encoder",
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_size": 64,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 256,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": MAX_TOKENS,
    "model_type": "clip_text_model",
    "pad_token_id": 1,
    "torch_dtype": "float32",
    "transformers_version": "4.25.0.dev0",
}
SCHEDULER_CONFIG: Mapping[str, Any] = {
    "_diffusers_version": "0.8.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


@dataclass(frozen=True, kw_only=True)
class NarrowModel:
    """What sets one Stable Diffusion apart from the others: what its parts' configs say beyond those above."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    pad_token: str
    index: Mapping[str, Any] = field(default_factory=dict)


_OPEN_CLIP = {"hidden_act": "gelu", "num_attention_heads": 4, "num_hidden_layers": 23, "projection_dim": 32}
_LINEAR_PROJECTIONS = {
    "attention_head_dim": [1, 2, 4, 4],  # heads, whatever the name says; 5, 10, 20, 20 at full width
    "dual_cross_attention": False,
    "only_cross_attention": False,
    "use_linear_projection": True,
}
MODELS: Mapping[str, NarrowModel] = {
    "2.1-base": NarrowModel(
        unet=_LINEAR_PROJECTIONS | {"sample_size": 64},
        vae={"sample_size": 768},
        text_encoder=_OPEN_CLIP,
        scheduler={"_class_name": "PNDMScheduler", "prediction_type": "epsilon"},
        pad_token="!",
    ),
    "2.1": NarrowModel(  # the one for 768 pixels
        unet=_LINEAR_PROJECTIONS | {"sample_size": 96, "upcast_attention": True},
        vae={"sample_size": 768},
        text_encoder=_OPEN_CLIP,
        scheduler={"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
        pad_token="!",
    ),
    "1.5": NarrowModel(  # convolutions around the attention layers, and as many heads on every level
        unet={"attention_head_dim": 8, "sample_size": 64},
        vae={"sample_size": 512},
        text_encoder={
            "hidden_act": "quick_gelu",
            "num_attention_heads": 4,
            "num_hidden_layers": 12,
            "projection_dim": 64,
        },
        scheduler={"_class_name": "PNDMScheduler"},
        pad_token=END,
        index={"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]},
    ),
}
# As published, for a benchmark: 5 GB.
TRUE_SIZE = NarrowModel(
    unet={
        **_LINEAR_PROJECTIONS,
        "attention_head_dim": [5, 10, 20, 20],
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 1024,
        "norm_num_groups": 32,
        "sample_size": 64,
    },
    vae={"block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32, "sample_size": 768},
    text_encoder={
        **_OPEN_CLIP,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "projection_dim": 512,
        "vocab_size": 49408,
    },
    scheduler={"_class_name": "PNDMScheduler", "prediction_type": "epsilon"},
    pad_token="!",
)


def save_narrow_model(folder: Path, kind: str, *, seed: int = 0) -> Path:
    """Write the narrow model `kind` (a key of `MODELS`) into `folder`, in float32; returns the folder."""
    return save_model(folder, MODELS[kind], seed=seed)


def save_model(folder: Path, model: NarrowModel, *, seed: int = 0) -> Path:
    """Write a model of such sizes into `folder`, in float32; returns the folder."""
    vocabulary, merges = _vocabulary()
    text_config = {"vocab_size": len(vocabulary), **TEXT_CONFIG, **model.text_encoder}
    unet_config, vae_config = {**UNET_CONFIG, **model.unet}, {**VAE_CONFIG, **model.vae}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel.from_config(unet_config)
        vae = AutoencoderKL.from_config(vae_config)
        text_encoder = CLIPTextModel(CLIPTextConfig(**text_config))
    _write_part(folder / "unet", unet_config, unet, "diffusion_pytorch_model")
    _write_part(folder / "vae", vae_config, vae, "diffusion_pytorch_model")
    _write_part(folder / "text_encoder", text_config, text_encoder, "model")
    _write_json(folder / "scheduler" / "scheduler_config.json", {**SCHEDULER_CONFIG, **model.scheduler})
    _write_json(folder / "feature_extractor" / "preprocessor_config.json", {"size": 224, "do_normalize": True})
    _write_tokenizer(folder / "tokenizer", vocabulary, merges, pad_token=model.pad_token)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.8.0",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", model.scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write_json(folder / "model_index.json", {**index, **model.index})
    return folder


def _write_part(folder: Path, config: Mapping[str, Any], module: nn.Module, name: str) -> None:
    _write_json(folder / "config.json", config)
    save_file(_hub_weights(module), folder / f"{name}.safetensors", metadata={"format": "pt"})


def _hub_weights(module: nn.Module) -> dict[str, Tensor]:
    """The state under the names of the published files: text encoders were wrapped once more and stored their
    positions' numbers; an autoencoder's attention called its layers by other names.
    """
    state = dict(module.state_dict())
    if isinstance(module, CLIPTextModel):
        positions = torch.arange(MAX_TOKENS)[None]
        return {f"text_model.{key}": value for key, value in state.items()} | {
            "text_model.embeddings.position_ids": positions
        }
    if isinstance(module, AutoencoderKL):
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for new_name, old_name in old.items():
            for key in [key for key in state if f".attentions.0.{new_name}." in key]:
                state[key.replace(new_name, old_name)] = state.pop(key)
    return state


def _vocabulary() -> tuple[dict[str, int], list[str]]:
    """Tokens and merges of a byte-level byte-pair tokenizer that knows `WORDS` whole, in the published files' order:
    bytes ("!" is token 0), bytes that end a word, merged pieces, and the two special tokens last.
    """
    characters = sorted(ByteLevel.alphabet(), key=lambda character: (ord(character) > 255, ord(character)))
    tokens = [*characters, *(f"{character}</w>" for character in characters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        left, *pieces = _merged([*word[:-1], f"{word[-1]}</w>"], merges)
        for right in pieces:
            merges.append((left, right))
            left += right
            tokens.append(left)
    numbers = {token: number for number, token in enumerate([*tokens, START, END])}
    return numbers, [f"{left} {right}" for left, right in merges]


def _merged(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """The pieces after the merges, in their order: what the tokenizer would make of a word so far."""
    for left, right in merges:
        joined: list[str] = []
        for piece in pieces:
            if joined and (joined[-1], piece) == (left, right):
                joined[-1] += piece
            else:
                joined.append(piece)
        pieces = joined
    return pieces


def _write_tokenizer(folder: Path, vocabulary: Mapping[str, int], merges: list[str], *, pad_token: str) -> None:
    """As the published folders have it: no tokenizer.json, and the padding of special_tokens_map.json counts."""

    def special(text: str) -> dict[str, Any]:
        return {"content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}

    _write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    settings = {
        "add_prefix_space": False,
        "bos_token": {"__type": "AddedToken", **special(START)},
        "do_lower_case": True,
        "eos_token": {"__type": "AddedToken", **special(END)},
        "errors": "replace",
        "model_max_length": MAX_TOKENS,
        "name_or_path": "openai/clip-vit-large-patch14",
        "pad_token": END,
        "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": {"__type": "AddedToken", **special(END)},
    }
    _write_json(folder / "tokenizer_config.json", settings)
    tokens = {"bos_token": special(START), "eos_token": special(END), "pad_token": pad_token, "unk_token": special(END)}
    _write_json(folder / "special_tokens_map.json", tokens)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")
