"""Whether a folder holds a Stable Diffusion that this project can use (Rombach et al. 2022): told from configs and the
weight files' headers, before a weight is read.

All errors are ValueError, one line each, that names the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel, UniPCMultistepScheduler
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from model.base.folder import INDEX_NAME, PARTS, DiffusersFolder, first_line

SUPPORTED = "Stable Diffusion 1.x and 2.x are supported"

_PIPELINES = {"StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"}
# What model_index.json may name: the parts that are read, and those that generation does without.
_READ = {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
_UNUSED = {"safety_checker", "feature_extractor", "image_encoder", "requires_safety_checker"}
# Where the U-Nets of other models differ: each needs an input that nothing here gives, or attends to another one.
_PLAIN_UNET: Mapping[str, object] = {
    "addition_embed_type": None,  # SDXL, Kandinsky
    "time_cond_proj_dim": None,  # latent consistency models
    "class_embed_type": None,  # unCLIP
    "num_class_embeds": None,  # upscalers
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "attention_type": "default",  # GLIGEN
    "dual_cross_attention": False,
    "only_cross_attention": False,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
}
_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D")
# Where a part's config says what it is, and the right answers.
_CLASSES = {
    "unet": ("_class_name", ("UNet2DConditionModel",)),
    "vae": ("_class_name", ("AutoencoderKL",)),
    "text_encoder": ("model_type", ("clip_text_model", "clip")),
}
_PREDICTION_TYPES = ("epsilon", "v_prediction")
_FLOATS = ("F64", "F32", "F16", "BF16")
# The numbers of the positions, which old text encoders stored, and CLIP's layer behind the features that are used.
_NEEDLESS = {"embeddings.position_ids", "text_projection.weight"}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class CheckedParts:
    """The parts of a base model; those that have weights are without values, on the meta device."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDPMScheduler


def check_configs(folder: DiffusersFolder) -> CheckedParts:
    """Check that the folder is a Stable Diffusion 1.x or 2.x whose parts fit each other; looks at no weights."""
    check_kind(folder)
    configs = {part: folder.read_json(f"{part}/config.json") for part in PARTS}
    noise = folder.read_json("scheduler/scheduler_config.json")
    if "beta_schedule" not in noise and noise.get("trained_betas") is None:  # the library would take its own
        raise folder.unfit(f": its scheduler, a {noise.get('_class_name')}, has no beta_schedule; {SUPPORTED}")
    with torch.device("meta"):
        unet = _made(folder, "unet", UNet2DConditionModel.from_config, configs["unet"])
        vae = _made(folder, "vae", AutoencoderKL.from_config, configs["vae"])
        text_encoder = _made(folder, "text_encoder", _text_encoder, folder.path / "text_encoder")
    tokenizer = _made(folder, "tokenizer", _tokenizer, folder.path / "tokenizer")
    scheduler = _made(folder, "scheduler", DDPMScheduler.from_config, noise)
    parts = CheckedParts(unet, vae, text_encoder, tokenizer, scheduler)
    _check_latents(folder, parts)
    _check_text(folder, parts)
    _check_noise(folder, parts.scheduler)
    return parts


def check_kind(folder: DiffusersFolder) -> None:
    """Check that the folder is a Stable Diffusion 1.x or 2.x, by what it calls itself and its parts' settings alone."""
    index = _config(folder, INDEX_NAME)
    name, difference = str(index.get("_class_name", "StableDiffusionPipeline")), _difference(folder)
    if name not in _PIPELINES:
        raise folder.unfit(f" is a {name}{difference and f' ({difference})'}; {SUPPORTED}")
    if difference:
        raise folder.unfit(f" is no plain Stable Diffusion ({difference}); {SUPPORTED}")
    parts = [key for key, value in index.items() if isinstance(value, list) and any(value)]
    others = [key for key in parts if key not in _READ | _UNUSED]
    if others:
        raise folder.unfit(f" has parts that a Stable Diffusion has not ({', '.join(others)}); {SUPPORTED}")


def _difference(folder: DiffusersFolder) -> str:
    """The first thing that sets a model apart from Stable Diffusion; empty where there is none. Files that are missing
    are no difference.
    """
    if (folder.path / "transformer").is_dir() and not (folder.path / "unet").is_dir():
        return "it has a transformer and no unet"
    unet = _config(folder, "unet/config.json")
    for key, plain in _PLAIN_UNET.items():
        if unet.get(key, plain) != plain:
            return f"{key} {unet[key]}"
    for key in ("down_block_types", "up_block_types"):
        kinds = unet.get(key) or []
        for kind in kinds if isinstance(kinds, list) else [kinds]:
            if kind not in _BLOCKS:
                return f"{key} {kind}"
    for part, (key, known) in _CLASSES.items():
        kind = _config(folder, f"{part}/config.json").get(key)
        if kind is not None and kind not in known:
            return f"{part} {kind}"
    return ""


def _config(folder: DiffusersFolder, file: str) -> dict[str, Any]:
    return folder.read_json(file) if (folder.path / file).is_file() else {}


def _made(folder: DiffusersFolder, part: str, make: Callable[..., Made], given: object) -> Made:
    try:
        return make(given)
    except Exception as error:  # the libraries check few settings, so a strange one may end in any error
        raise folder.unfit(f": cannot make its {part} from its config ({first_line(error)})") from error


def _text_encoder(folder: Path) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig.from_pretrained(folder))


def _tokenizer(folder: Path) -> CLIPTokenizer:
    for names in (("tokenizer.json",), ("vocab.json", "merges.txt")):
        if all((folder / name).is_file() for name in names):
            return CLIPTokenizer.from_pretrained(folder)
    raise ValueError("vocab.json or merges.txt is missing")  # the library would make one that knows no word


def _check_latents(folder: DiffusersFolder, parts: CheckedParts) -> None:
    """The U-Net takes and gives the latents that the autoencoder makes of RGB pictures."""
    unet, vae = parts.unet.config, parts.vae.config
    if not unet.in_channels == unet.out_channels == vae.latent_channels:
        raise folder.unfit(
            f": its unet takes {unet.in_channels} channels and gives {unet.out_channels}, its vae's latents have "
            f"{vae.latent_channels}; these must be equal, so models for inpainting, depth or upscaling do not fit"
        )
    if not vae.in_channels == vae.out_channels == 3:
        raise folder.unfit(f": its vae takes {vae.in_channels} channels and gives {vae.out_channels}, must be 3 of RGB")
    if not (isinstance(unet.sample_size, int) and unet.sample_size > 0):
        raise folder.unfit(f": its unet's sample_size is {unet.sample_size}, must be the latents' side")
    if not (isinstance(vae.scaling_factor, float | int) and 0 < vae.scaling_factor < float("inf")):
        raise folder.unfit(f": its vae's scaling_factor is {vae.scaling_factor}, must be a positive number")
    shift = vae.shift_factor
    if shift is not None and not (isinstance(shift, float | int) and abs(shift) < float("inf")):
        raise folder.unfit(f": its vae's shift_factor is {shift}, must be a number or absent")
    if vae.latents_mean is not None or vae.latents_std is not None:
        raise folder.unfit(": its vae has latents_mean or latents_std; only scaling_factor and shift_factor are known")


def _check_text(folder: DiffusersFolder, parts: CheckedParts) -> None:
    """The U-Net takes the features that the text encoder makes of the tokenizer's tokens."""
    text, tokenizer = parts.text_encoder.config, parts.tokenizer
    if parts.unet.config.cross_attention_dim != text.hidden_size:
        raise folder.unfit(
            f": its unet takes texts of {parts.unet.config.cross_attention_dim} channels (cross_attention_dim), its "
            f"text_encoder makes {text.hidden_size} (hidden_size)"
        )
    if tokenizer.model_max_length > text.max_position_embeddings:
        length = tokenizer.model_max_length
        said = f"makes up to {length} tokens" if length < 2**31 else "says no model_max_length"
        raise folder.unfit(f": its tokenizer {said}, its text_encoder takes {text.max_position_embeddings}")
    if len(tokenizer) > text.vocab_size:
        raise folder.unfit(f": its tokenizer knows {len(tokenizer)} tokens, its text_encoder {text.vocab_size}")


def _check_noise(folder: DiffusersFolder, scheduler: DDPMScheduler) -> None:
    """The schedule is that of a diffusion, for training and for UniPC, which generates; what is predicted is known."""
    config = scheduler.config
    _made(folder, "scheduler", UniPCMultistepScheduler.from_config, config)
    if config.prediction_type not in _PREDICTION_TYPES:
        raise folder.unfit(
            f": its scheduler's prediction_type is {config.prediction_type!r}, must be {' or '.join(_PREDICTION_TYPES)}"
        )
    if config.num_train_timesteps < 1 or len(scheduler.betas) != config.num_train_timesteps:
        raise folder.unfit(
            f": its scheduler has {config.num_train_timesteps} steps (num_train_timesteps) and {len(scheduler.betas)} "
            "betas; there must be a beta for each step, and at least one"
        )
    betas: Tensor = scheduler.betas
    if not ((betas > 0) & (betas <= 1)).all():
        raise folder.unfit(": its scheduler's betas must lie in (0, 1]")


def check_weights(folder: DiffusersFolder, parts: CheckedParts) -> None:
    """Check that the stored weights have the names, types and shapes that the parts' configs ask for."""
    for part in PARTS:
        module: nn.Module = getattr(parts, part)
        expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
        found = {todays_name(part, key): stored for key, stored in folder.headers(part).items()}
        missing = [key for key in expected if key not in found]
        extra = [key for key in found if key not in expected and key not in _NEEDLESS]
        if missing:
            instead = f"; it has {extra[0]}, which is not its" if extra else ""
            raise folder.unfit(f": its {part} lacks {_first(missing, len(expected))}{instead}")
        if extra:
            raise folder.unfit(f": its {part} also has {_first(extra, len(found))}, which its config does not explain")
        others = [key for key in expected if found[key].dtype not in _FLOATS]
        if others:
            raise folder.unfit(
                f": its {part} has numbers of type {found[others[0]].dtype} in {_first(others, len(expected))}, must "
                "be floating point; quantized models are not read"
            )
        for key, shape in expected.items():
            if found[key].shape != shape:
                raise folder.unfit(f": its {part} has {key} of shape {found[key].shape}, its config makes it {shape}")


def todays_name(part: str, key: str) -> str:
    """The name that a stored weight has in today's libraries, which know the older ones too."""
    if part == "text_encoder":
        return key.removeprefix("text_model.")
    if part == "vae":
        old = re.match(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", key)
        return key if old is None else f"{old[1]}.{_OLD_ATTENTION[old[2]]}.{old[3]}"
    return key


def check_values(folder: DiffusersFolder, part: str, module: nn.Module) -> None:
    """Check that all weights of a part are finite."""
    state = module.state_dict()
    bad = [key for key, value in state.items() if not value.isfinite().all()]
    if bad:
        raise folder.unfit(f": its {part} has NaN or infinity in {_first(bad, len(state))}; download it again")


def _first(keys: list[str], total: int) -> str:
    """ "conv_out.weight (1 of 210)": the first of some names, and how many they are."""
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return f"{keys[0]}{more} ({len(keys)} of {total})"
