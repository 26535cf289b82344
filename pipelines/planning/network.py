"""The network of a run before any of it exists: what its base's U-Net is like, how many parameters it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch

from infra.errors import UserError
from model.adapter import freeze_base
from model.base.checks import check_kind
from model.base.folder import DiffusersFolder, find_folder
from model.base.stable_diffusion import downsampling, side_multiple
from model.config import BaseConfig, TinyBaseConfig, ViewDiffConfig
from model.unet import ViewDiffUNet
from pipelines.settings.run import RunConfig
from pipelines.spine.sources import refusing_base

Value = TypeVar("Value")

# The U-Net of Stable Diffusion 2.x, for ids that are not on this disk: enough to count its parameters.
STABLE_DIFFUSION_2_UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
# Its autoencoder and text encoder.
STABLE_DIFFUSION_2_CODERS = 83_653_863 + 340_387_840


@dataclass(frozen=True, kw_only=True)
class BaseSizes:
    """What a base model makes of pictures and captions."""

    downsampling: int
    """Image pixels per latent pixel along a side."""
    side_multiple: int
    """Pictures must have sides that are multiples of this many pixels."""
    text_length: int
    """Tokens of a caption."""


STABLE_DIFFUSION_SIZES = BaseSizes(downsampling=8, side_multiple=64, text_length=77)  # of all 1.x and 2.x


def meta_network(config: RunConfig) -> ViewDiffUNet:
    """The network that would be trained, without values; what is frozen needs no gradient.

    Raises:
        UserError: the base's U-Net cannot be made into it, or its folder holds no Stable Diffusion.
    """
    return _meta_network(config.base, config.train.model, is_adapter=config.train.trained == "adapter")


def count_parameters(config: RunConfig) -> dict[str, int]:
    """Parameters of the network, built without memory: the base's U-Net, what is added to it, the volume renderers.

    Raises:
        UserError: as `meta_network`.
    """
    return dict(_count(config.base, config.train.model, is_adapter=config.train.trained == "adapter"))


@lru_cache(maxsize=4)  # read only; building one takes a second, and a page of plans asks for the same ones
def _meta_network(base: BaseConfig, model: ViewDiffConfig, *, is_adapter: bool) -> ViewDiffUNet:
    try:
        network = ViewDiffUNet.meta(base_unet_config(base), model)
    except ValueError as error:
        assumed = assumption(base)
        raise UserError(f"train.model: {error}{assumed and f'; {assumed}'}") from error
    if is_adapter:
        freeze_base(network)
    return network


@lru_cache(maxsize=64)  # a plan tries many ways to divide the same network
def _count(base: BaseConfig, model: ViewDiffConfig, *, is_adapter: bool) -> dict[str, int]:
    network = _meta_network(base, model, is_adapter=is_adapter)
    total = sum(p.numel() for p in network.parameters())
    groups = {name: sum(p.numel() for p in part) for name, part in network.parameter_groups().items()}
    with torch.device("meta"):
        stock = sum(p.numel() for p in type(network.unet).from_config(base_unet_config(base)).parameters())
    return {
        "U-Net of the base model": stock,
        "added: attention, projection layers": total - stock,
        "of which volume renderers": groups.get("renderer", 0),
        "total": total,
        "trained": sum(groups.values()),
    }


def base_sizes(base: BaseConfig) -> BaseSizes:
    """Of the stand-in, of the base's folder, or of Stable Diffusion for an id that is not on this disk.

    Raises:
        UserError: the folder holds no Stable Diffusion.
    """
    if base.source is None:
        tiny = base.tiny
        return BaseSizes(
            downsampling=downsampling({"block_out_channels": tiny.vae_channels}),
            side_multiple=tiny.side_multiple,
            text_length=tiny.text_length,
        )
    return read_folder(base.source, _sizes) or STABLE_DIFFUSION_SIZES


def _sizes(folder: DiffusersFolder) -> BaseSizes:
    vae, unet = folder.read_json("vae/config.json"), folder.read_json("unet/config.json")
    tokenizer = folder.read_json("tokenizer/tokenizer_config.json")
    for file, config, key in (
        ("vae/config.json", vae, "block_out_channels"),
        ("unet/config.json", unet, "block_out_channels"),
        ("tokenizer/tokenizer_config.json", tokenizer, "model_max_length"),
    ):
        if key not in config:
            raise folder.unfit(f": {file} has no {key}; give a folder that diffusers' save_pretrained wrote")
    return BaseSizes(
        downsampling=downsampling(vae),
        side_multiple=side_multiple(vae, unet),
        text_length=tokenizer["model_max_length"],
    )


def base_unet_config(base: BaseConfig) -> dict[str, object]:
    """Config of the base's U-Net: from its folder, the published one of Stable Diffusion 2.x, or the stand-in's.

    Raises:
        UserError: the folder holds no Stable Diffusion.
    """
    if base.source is None:
        return tiny_unet_config(base.tiny)
    found = read_folder(base.source, lambda folder: folder.read_json("unet/config.json"))
    return dict(STABLE_DIFFUSION_2_UNET) if found is None else found


def assumption(base: BaseConfig) -> str:
    """Whose sizes are taken for a base model that is not on this disk; empty for others."""
    if base.source is None or Path(base.source).exists():
        return ""
    return f"the sizes of {base.source} are taken to be Stable Diffusion 2.1's, as it is no folder on this machine"


def read_folder(source: str, read: Callable[[DiffusersFolder], Value]) -> Value | None:
    """What `read` makes of a base model's folder; None for what is not on this disk: an id, or a folder that was read
    once and is gone.

    Raises:
        UserError: the folder holds no Stable Diffusion, or `read` raised a ValueError.
    """
    if not Path(source).exists():
        return None
    with refusing_base():
        folder = find_folder(source)
        if folder is None:
            return None
        check_kind(folder)
        return read(folder)


def tiny_unet_config(config: TinyBaseConfig) -> dict[str, object]:
    """Config of the stand-in's U-Net."""
    from model.base.stand_in import tiny_unet

    with torch.device("meta"):
        return dict(tiny_unet(config, image_size=config.side_multiple).config)  # layers are the same at any size
