"""Volume operators and a training pass on a GPU: `python -m benchmarks.bench_gpu`. Ends at once where there is none.

Forward + backward, both versions in turns, timed with CUDA events; peak memory over what was held before.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from benchmarks.record import table, write
from model.config import ProjectionConfig
from model.layers.projection import ProjectionLayer
from model.layers.views import Scene, ViewContext
from model.unet import ViewDiffUNet
from model.volume.filling import ViewAggregator, project_voxels
from model.volume.geometry import LayerShape, compute_geometry
from model.volume.kernels.selection import Version, use
from model.volume.rendering import VolumeRenderer, sample_rays
from pipelines.planning.network import STABLE_DIFFUSION_2_UNET
from pipelines.settings.presets import PRESETS
from tests.support.factories import look_at_cameras

CHANNELS, TIMESTEP_CHANNELS = 16, 1280
REPETITIONS = 20
# Milliseconds and gigabytes that are to be reached on an H200.
TARGETS = {
    "one 32³ projection layer, 4 × 5 views": "1 ms",
    "unproject + aggregate, 128³, 4 views": "2.5 ms, 0.15 GB",
    "ray march, 1,280 rays × 256 samples": "0.4 ms",
    "pyramid, micro-batch 8, bfloat16": "100 GB in all",
}


def measure(call: Callable[[], Tensor], *, repetitions: int = REPETITIONS) -> dict[str, float]:
    """Median milliseconds of forward + backward, peak gigabytes over what was held before, and in all."""
    call().sum().backward()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held, milliseconds = torch.cuda.memory_allocated(), []
    for _ in range(repetitions):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call().sum().backward()
        end.record()
        torch.cuda.synchronize()
        milliseconds.append(start.elapsed_time(end))
    peak = torch.cuda.max_memory_allocated()
    return {
        "milliseconds": statistics.median(milliseconds),
        "gigabytes": (peak - held) / 1e9,
        "gigabytes_in_all": peak / 1e9,  # with weights and gradients; AdamW's states would add 12 bytes a parameter
    }


def scene(num_samples: int, num_views: int, size: int) -> Scene:
    """Cameras around the unit cube on the GPU."""
    return Scene(
        look_at_cameras(num_samples, num_views, image_size=(size, size)),
        torch.tensor([[-1.0] * 3, [1.0] * 3]).repeat(num_samples, 1, 1),
        torch.full((num_samples, num_views, 2), 0.3),
    ).to("cuda")


def aggregation() -> Callable[[], Tensor]:
    """G5: features of four views into 128³ voxels."""
    views, aggregator = scene(1, 4, 16), ViewAggregator(CHANNELS, TIMESTEP_CHANNELS).cuda()
    voxels = project_voxels(views.cameras, views.scene_bounds, grid_size=128, foreground_fraction=0.5)
    voxels = voxels.resize((16, 16))
    features = torch.randn(1, 4, CHANNELS, 16, 16, device="cuda", requires_grad=True)
    timesteps = torch.randn(1, 4, TIMESTEP_CHANNELS, device="cuda")
    return lambda: aggregator(features, voxels, timesteps)


def march() -> Callable[[], Tensor]:
    """G6: 4 × 5 views of 8 × 8 rays with 128 + 128 positions."""
    views, renderer = scene(4, 5, 8), VolumeRenderer(CHANNELS).cuda()
    (rays,) = sample_rays(views.cameras, views.scene_bounds, ProjectionConfig(blocks=()), (8, 8))
    volume = torch.randn(4, CHANNELS, 32, 32, 32, device="cuda", requires_grad=True)
    return lambda: renderer(volume, rays, (8, 8)).features


def projection_layer() -> Callable[[], Tensor]:
    """G4: one whole layer of `released`, 1,280 channels."""
    config, shape = PRESETS["released"]().train.model.projection, LayerShape(32, (8, 8))
    layer, views = ProjectionLayer(1280, 32, TIMESTEP_CHANNELS, config, layer_index=0).cuda(), scene(4, 5, 64)
    context = ViewContext(
        num_views=5,
        latent_size=(8, 8),
        conditioning=torch.zeros(20, 10, device="cuda"),
        timestep_embedding=torch.randn(20, TIMESTEP_CHANNELS, device="cuda"),
        geometry=compute_geometry(views.cameras, views.scene_bounds, [shape], config),
        hidden_views=1,
        opacity_noise=None,
    )
    tokens = torch.randn(20, 64, 1280, device="cuda", requires_grad=True)

    def call() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return layer(tokens, 8, 8, context).float()

    return call


def pyramid() -> Callable[[], Tensor]:
    """G11: a training pass of 8 samples of 5 views."""
    network = ViewDiffUNet(UNet2DConditionModel.from_config(STABLE_DIFFUSION_2_UNET), PRESETS["pyramid"]().train.model)
    network, views = network.cuda().train(), scene(8, 5, 256)
    inputs: dict[str, Any] = {
        "latents": torch.randn(8, 5, 4, 32, 32, device="cuda"),
        "timesteps": torch.full((8, 5), 500, device="cuda"),
        "text": torch.randn(8, 77, 1024, device="cuda"),
        "scene": views,
        "hidden_views": 1,
        "opacity_noise_seeds": torch.arange(8, device="cuda"),
    }

    def call() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return network(**inputs)

    return call


def main() -> None:
    """Measure, print, write docs/benchmarks/<date>-gpu.{json,md}."""
    if not torch.cuda.is_available():
        print("bench_gpu: no CUDA device here, nothing measured")
        return
    results: dict[str, dict[str, dict[str, float]]] = {}
    versions: tuple[Version, ...] = ("tiled", "triton")
    for name, make in zip(TARGETS, (projection_layer, aggregation, march), strict=False):
        for version in versions:
            with use(version):
                results.setdefault(name, {})[version] = measure(make())
    results["pyramid, micro-batch 8, bfloat16"] = {"triton": measure(pyramid(), repetitions=3)}
    rows = [
        [
            name,
            version,
            *(f"{row[key]:.3f}" for key in ("milliseconds", "gigabytes", "gigabytes_in_all")),
            TARGETS[name],
        ]
        for name, by_version in results.items()
        for version, row in by_version.items()
    ]
    text = f"{torch.cuda.get_device_name()}. Forward + backward.\n\n" + table(
        ["what", "version", "ms", "peak GB", "GB in all", "target on an H200"], rows
    )
    write("gpu", title="On a GPU", text=text, results={"device": torch.cuda.get_device_name(), "results": results})


if __name__ == "__main__":
    main()
