"""The products of a projection layer (the paper, section 3.2).

The operators of model/kernels start their backward pass with their forward pass, so what they compute is always
computed again; `recompute_volumes` computes all that happens in a volume again.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from model.config import ProjectionConfig
from model.cost.products import COMPRESS, EXPAND, FILL, REFINE, RENDER, Product, Tracker
from model.layers.projection import ProjectionLayer, VolumeRefiner
from model.volume.filling import ViewAggregator


def projection(track: Tracker, layer: ProjectionLayer, config: ProjectionConfig, level: int) -> Iterator[Product]:
    """Of a layer that sees features of the U-Net's level `level`."""
    work = track.workload
    pixels = work.num_pixels(level)
    visible = work.num_samples * (work.num_views - work.hidden_views)
    for module in layer.compress.modules():
        if isinstance(module, nn.Conv2d):
            yield track.layer(module, visible * pixels, part=COMPRESS)
    again = int(layer.recompute)
    if isinstance(layer.aggregator, ViewAggregator):
        yield from _fill(track, layer.aggregator, layer.grid_size**3, visible, again=again)
    yield from _refine(track, layer.refiner, layer.grid_size, again=again)
    yield from _render(track, layer, config, pixels, again=again)
    for module in (*layer.expand_foreground.modules(), *layer.expand_background.modules()):
        if isinstance(module, nn.Linear):
            yield track.layer(module, work.num_images * pixels, part=EXPAND)


def aggregation_flops(aggregator: ViewAggregator) -> tuple[float, float]:
    """Of `ViewAggregator.merge`: for a (voxel, view) pair that is seen, and for a voxel."""
    weights = aggregator.weights()
    matrices = sum(weight.numel() for weight in weights if weight.ndim == 2)
    # The view encoder sees [mean; variance; feature]: the first two thirds are the voxel's.
    of_voxel = weights.view_in.numel() * 2 // 3 + weights.output.numel()
    return 2.0 * (matrices - of_voxel), 2.0 * of_voxel


def _fill(track: Tracker, aggregator: ViewAggregator, voxels: int, visible: int, *, again: int) -> Iterator[Product]:
    enter, _, leave, _ = aggregator.timestep_encoder
    for layer, moving in ((enter, track.embedding_moves), (leave, True)):
        yield track.layer(layer, visible, part=FILL, moving=moving, recomputed=again)
    of_pairs, of_voxels = aggregation_flops(aggregator)
    of_rays = 2.0 * aggregator.ray_encoder[0].weight.numel()  # what it sees, directions and depths, does not move
    pairs, voxels = voxels * visible * track.workload.seen_share, voxels * track.workload.num_samples
    flops = (of_pairs - of_rays) * pairs + of_voxels * voxels
    yield Product(FILL, of_rays * pairs, 1, checkpointed=True, recomputed=again + 1)
    yield Product(FILL, flops, 2, checkpointed=True, recomputed=again + 1)


def _refine(track: Tracker, refiner: VolumeRefiner, grid_size: int, *, again: int) -> Iterator[Product]:
    samples = track.workload.num_samples
    blocks = [refiner.enter] if refiner.inner is None else [refiner.enter, refiner.leave]
    convolutions = [(part, grid_size) for block in blocks for part in block.modules() if isinstance(part, nn.Conv3d)]
    if refiner.inner is not None:
        convolutions += [(refiner.down, grid_size // 2), (refiner.up, grid_size)]
    for convolution, side in convolutions:
        yield track.layer(convolution, samples * side**3, part=REFINE, recomputed=again)
    for block in blocks:
        yield track.layer(block.timestep, samples, part=REFINE, moving=track.embedding_moves, recomputed=again)
    if refiner.inner is not None:
        yield from _refine(track, refiner.inner, grid_size // 2, again=again)


def _render(
    track: Tracker, layer: ProjectionLayer, config: ProjectionConfig, pixels: int, *, again: int
) -> Iterator[Product]:
    renderer, rays = layer.renderer, track.workload.num_images * pixels
    positions = rays * config.num_samples * (2 if config.background else 1)
    yield track.layer(renderer.color_ray, rays, part=RENDER, moving=False, recomputed=again)
    for network in (renderer.trunk[0], renderer.trunk[2], renderer.density, renderer.color_hidden, renderer.color):
        yield track.layer(network, positions, part=RENDER, recomputed=again + 1)
    summed = 2.0 * positions * config.feature_channels  # the colours along a ray, each by its weight
    yield Product(RENDER, summed, 2, checkpointed=True, recomputed=again + 1)
