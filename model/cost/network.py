"""The products of a whole network: a stock U-Net's blocks and the attention of model/layers/attention.py in them (the
paper, section 3.1).

What gradient checkpointing computes again are the ResNet and transformer blocks, but for their last layer each:
computing again stops where all that the backward pass needs is there.
"""

from __future__ import annotations

from collections.abc import Iterator

from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from model.config import ProjectionConfig
from model.cost.products import CONDITIONING, CROSS_FRAME, EXPAND, TEXT_ATTENTION, Product, Tracker, Workload
from model.cost.volumes import projection
from model.layers.attention import CrossFrameAttention
from model.layers.augment import ProjectedBlock
from model.unet import ViewDiffUNet


def list_products(network: ViewDiffUNet, workload: Workload) -> list[Product]:
    """The products of one call; what is trained is told by the weights' `requires_grad`."""
    return list(_unet(network, workload))


def _unet(network: ViewDiffUNet, workload: Workload) -> Iterator[Product]:
    unet, config = network.unet, network.config.projection
    embedding, images = unet.time_embedding, workload.num_images
    track = Tracker(workload, embedding_moves=embedding.linear_1.weight.requires_grad)
    yield track.layer(embedding.linear_1, images, moving=False, checkpointed=False)
    yield track.layer(embedding.linear_2, images, moving=track.embedding_moves, checkpointed=False)
    yield track.layer(unet.conv_in, images * workload.num_pixels(0), checkpointed=False)
    last = len(unet.down_blocks) - 1
    for level, block in enumerate(unet.down_blocks):
        yield from _way(track, block, config, level, after=level + 1)
    if unet.mid_block is not None:
        first, *others = unet.mid_block.resnets
        yield from _resnet(track, first, last, checkpointed=False)  # diffusers leaves it out
        for attention, resnet in zip(unet.mid_block.attentions, others, strict=True):
            yield from _transformer(track, attention, config, last)
            yield from _resnet(track, resnet, last)
    for number, block in enumerate(unet.up_blocks):
        yield from _way(track, block, config, last - number, after=last - number - 1)
    yield track.layer(unet.conv_out, images * workload.num_pixels(0), checkpointed=False)


def _way(track: Tracker, block: nn.Module, config: ProjectionConfig, level: int, *, after: int) -> Iterator[Product]:
    """A block of the way down or up, whose last layer changes to the level `after`."""
    attentions = getattr(block, "attentions", [None] * len(block.resnets))
    for resnet, attention in zip(block.resnets, attentions, strict=True):
        yield from _resnet(track, resnet, level)
        if attention is not None:
            yield from _transformer(track, attention, config, level)
    for sampler in (*(getattr(block, "downsamplers", None) or ()), *(getattr(block, "upsamplers", None) or ())):
        positions = track.workload.num_images * track.workload.num_pixels(after)
        yield track.layer(sampler.conv, positions, checkpointed=False)


def _transformer(
    track: Tracker, transformer: Transformer2DModel, config: ProjectionConfig, level: int
) -> Iterator[Product]:
    tokens = track.workload.num_images * track.workload.num_pixels(level)
    yield track.layer(transformer.proj_in, tokens, checkpointed=False)
    for block in transformer.transformer_blocks:
        yield from _attention(track, block.attn1, level)
        yield from _attention(track, block.attn2, level)
        if isinstance(block, ProjectedBlock):
            yield from projection(track, block.projection, config, level)
            if block.projection_out is not None:
                yield track.layer(block.projection_out, tokens, part=EXPAND)
        enter, _, leave = block.ff.net
        yield track.layer(enter.proj, tokens)
        yield track.layer(leave, tokens, checkpointed=False)
    yield track.layer(transformer.proj_out, tokens, checkpointed=False)


def _resnet(track: Tracker, resnet: nn.Module, level: int, *, checkpointed: bool = True) -> Iterator[Product]:
    images, input_moves = track.workload.num_images, track.moving
    positions = images * track.workload.num_pixels(level)
    shortcut = resnet.conv_shortcut
    yield track.layer(resnet.conv1, positions, checkpointed=checkpointed)
    yield track.layer(resnet.time_emb_proj, images, moving=track.embedding_moves, checkpointed=checkpointed)
    yield track.layer(resnet.conv2, positions, checkpointed=checkpointed and shortcut is not None)
    if shortcut is not None:
        yield track.layer(shortcut, positions, moving=input_moves, checkpointed=False)


def _attention(track: Tracker, attention: Attention, level: int) -> Iterator[Product]:
    """Projections, what the low-rank terms add to them, and the attention itself."""
    work, processor = track.workload, attention.processor
    cross_frame, before = isinstance(processor, CrossFrameAttention), track.moving
    queries = work.num_images * work.num_pixels(level)
    if cross_frame:
        enter, _, leave, _ = processor.timestep_code
        yield track.layer(enter, work.num_images, part=CONDITIONING, moving=track.embedding_moves)
        yield track.layer(leave, work.num_images, part=CONDITIONING, moving=True)
        keys, keys_move, length = queries, before, _seen_tokens(processor, work, level)
    else:  # nothing is trained before the text
        keys, keys_move, length = work.num_images * work.text_length, False, work.text_length
    yield track.layer(processor.down_view, work.num_images, part=CONDITIONING, moving=cross_frame)
    for name, positions, moving in (("to_q", queries, before), ("to_k", keys, keys_move), ("to_v", keys, keys_move)):
        yield track.layer(getattr(attention, name), positions, moving=moving)
    for low_rank, names in processor.low_ranks()[:-1]:  # the last is that of the output
        positions, moving = (queries, before) if "to_q" in names else (keys, keys_move)
        yield track.layer(low_rank.down, positions, part=CONDITIONING, moving=moving)
        for up in low_rank.up:
            yield track.layer(up, positions, part=CONDITIONING, moving=True)
    track.moving = True  # by the low-rank terms, which are always trained
    part = CROSS_FRAME if cross_frame else TEXT_ATTENTION
    yield Product(part, 4.0 * queries * length * attention.inner_dim, 2, checkpointed=True, recomputed=0)
    yield track.layer(attention.to_out[0], queries)
    for layer in (processor.low_rank_out.down, *processor.low_rank_out.up):
        yield track.layer(layer, queries, part=CONDITIONING)


def _seen_tokens(processor: CrossFrameAttention, work: Workload, level: int) -> int:
    """Tokens that one token attends to."""
    views = work.num_views if processor.cross_frame else 1
    return (views if views == 1 or processor.include_self else views - 1) * work.num_pixels(level)
