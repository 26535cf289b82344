"""Put the 3D layers onto a stock U-Net: attention processors everywhere, projection layers in chosen blocks (the
paper, figure 3).

No diffusers file is copied and no pretrained key changes: the state dict of the stock U-Net loads into the augmented
one, which only has more keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from model.config import ViewDiffConfig
from model.layers.attention import ConditionedTextAttention, CrossFrameAttention
from model.layers.projection import ProjectionLayer
from model.layers.views import ViewContext


class ProjectedBlock(nn.Module):
    """A `BasicTransformerBlock` with a projection layer between text attention and feed-forward.

    Takes over the block's children under their own names. The projection layer sees LayerNorm(x); its result replaces x
    (merge "replace"; the residual around the whole transformer remains) or is added to x through a linear layer that
    starts at zero (merge "zero_init").
    """

    def __init__(self, block: BasicTransformerBlock, projection: ProjectionLayer, *, merge: str) -> None:
        super().__init__()
        _check_block(block)
        for name, child in block.named_children():
            self.add_module(name, child)
        self.norm_projection = nn.LayerNorm(block.dim)
        self.projection = projection
        self.projection_out: nn.Linear | None = None
        if merge == "zero_init":
            self.projection_out = nn.Linear(block.dim, block.dim)
            nn.init.zeros_(self.projection_out.weight)
            nn.init.zeros_(self.projection_out.bias)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Tokens [B*V, L, C] -> [B*V, L, C]; the arguments and their order are those of `BasicTransformerBlock`."""
        views: ViewContext = (cross_attention_kwargs or {})["views"]
        x = hidden_states
        x = self.attn1(self.norm1(x), attention_mask=attention_mask, views=views) + x
        x = self.attn2(self.norm2(x), encoder_hidden_states, attention_mask=encoder_attention_mask, views=views) + x
        height, width = views.feature_size(x.shape[1])
        projected = self.projection(self.norm_projection(x), height, width, views)
        x = projected if self.projection_out is None else x + self.projection_out(projected)
        return self.ff(self.norm3(x)) + x


class LayerPlace(NamedTuple):
    """Where a projection layer sits."""

    grid_size: int  # voxels per side
    level: int  # how often latents are halved before they reach it


def augment(unet: UNet2DConditionModel, config: ViewDiffConfig) -> tuple[LayerPlace, ...]:
    """Add the 3D layers to `unet`, in place; returns the places of the projection layers by their index.

    Raises ValueError when the U-Net is augmented already, has attention layers of another kind than Stable Diffusion's,
    or lacks a block that `config.projection` names.
    """
    timestep_channels = unet.time_embedding.linear_2.out_features
    _set_processors(unet, config, timestep_channels)
    if "projection" in config.without:
        return ()
    available = projectable_blocks(unet)
    missing = [name for name, _ in config.projection.blocks if name not in available]
    if missing:
        raise ValueError(
            f"projection: no attention in {', '.join(missing)}; blocks that have it: {', '.join(available)}"
        )
    places: list[LayerPlace] = []
    for name, grid_size in config.projection.blocks:
        for transformer in _transformers(unet.get_submodule(name)):
            for position, block in enumerate(transformer.transformer_blocks):
                layer = ProjectionLayer(block.dim, grid_size, timestep_channels, config.projection, len(places))
                replacement = ProjectedBlock(block, layer, merge=config.projection.merge)
                transformer.transformer_blocks[position] = replacement
                places.append(LayerPlace(grid_size, _level(unet, name)))
    return tuple(places)


def projectable_blocks(unet: UNet2DConditionModel) -> tuple[str, ...]:
    """Names of the U-Net's blocks that can hold projection layers, in the order of the forward pass."""
    names = [f"down_blocks.{i}" for i in range(len(unet.down_blocks))]
    names += ["mid_block"] if unet.mid_block is not None else []
    names += [f"up_blocks.{i}" for i in range(len(unet.up_blocks))]
    return tuple(name for name in names if any(_transformers(unet.get_submodule(name))))


def _level(unet: UNet2DConditionModel, name: str) -> int:
    """How often latents are halved before they reach the attention layers of the block `name`."""
    kind, _, number = name.partition(".")
    last = len(unet.down_blocks) - 1
    return {"down_blocks": int(number or 0), "mid_block": last, "up_blocks": last - int(number or 0)}[kind]


def _set_processors(unet: UNet2DConditionModel, config: ViewDiffConfig, timestep_channels: int) -> None:
    for name, attention in unet.named_modules():
        if not isinstance(attention, Attention):
            continue
        _check_attention(name, attention)
        processor: nn.Module
        if attention.is_cross_attention:
            processor = ConditionedTextAttention(attention, rank=config.rank)
        else:
            processor = CrossFrameAttention(
                attention,
                rank=config.rank,
                timestep_channels=timestep_channels,
                include_self=config.include_self,
                cross_frame="cross_frame" not in config.without,
            )
        attention.set_processor(processor)


def _transformers(module: nn.Module) -> Iterator[Transformer2DModel]:
    return (child for child in module.modules() if isinstance(child, Transformer2DModel))


def _check_attention(name: str, attention: Attention) -> None:
    """Refuse layers with parts that the processors of model/layers/attention.py do not compute."""
    if isinstance(attention.processor, CrossFrameAttention | ConditionedTextAttention):
        raise ValueError(f"{name}: has a view processor already; augment a U-Net only once")
    extras = ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k", "added_kv_proj_dim")
    found = [extra for extra in extras if getattr(attention, extra) is not None]
    if found or attention.residual_connection or attention.rescale_output_factor != 1:
        raise ValueError(
            f"{name}: not an attention layer of Stable Diffusion's kind, it has "
            f"{', '.join(found) or 'its own residual or scale'}; use a U-Net of CrossAttn blocks"
        )


def _check_block(block: BasicTransformerBlock) -> None:
    if (
        block.norm_type != "layer_norm"
        or block.attn2 is None
        or block.only_cross_attention
        or block.pos_embed is not None
    ):
        raise ValueError(
            f"projection: needs transformer blocks with layer_norm, self and text attention; got norm_type "
            f"{block.norm_type!r}, only_cross_attention {block.only_cross_attention}"
        )
