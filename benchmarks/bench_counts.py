"""Operators and bytes of one call of the network, and what one generation repeats: `python -m benchmarks.bench_counts`.

Counts, not times: the same on every machine.
"""

from __future__ import annotations

from collections import Counter
from unittest.mock import patch

import numpy as np
import torch

import model.unet
from benchmarks.counting import count_operators, count_stock_operators, saved_bytes, saved_bytes_of_stock
from benchmarks.record import table, write
from model.adapter import adapter_state
from model.base.stable_diffusion import BaseModel
from model.base.stand_in import build_tiny_base
from model.config import ProjectionConfig, SamplingConfig, TinyBaseConfig, ViewDiffConfig
from model.trajectories import OrbitConfig, orbit
from model.unet import ViewDiffUNet
from model.volume.geometry import compute_geometry
from pipelines.generation.generator import SampleGenerator, SampleRequest
from pipelines.planning.network import STABLE_DIFFUSION_2_UNET
from pipelines.settings.presets import PRESETS

SIZED = ("released", "paper", "pyramid")
NUM_VIEWS = 10


def main() -> None:
    """Count, print, write docs/benchmarks/<date>-counts.{json,md}."""
    operators = {"stock U-Net": [count_stock_operators()] * 2}
    saved = {"stock U-Net": [saved_bytes_of_stock(dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]}
    for name in SIZED:
        config = PRESETS[name]().train.model
        operators[name] = [count_operators(config, training=training).total() for training in (True, False)]
        saved[name] = [saved_bytes(config, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    adapters = {name: adapter_megabytes(PRESETS[name]().train.model) for name in SIZED}
    generation = count_generation()
    text = "\n".join(
        [
            "Stable Diffusion 2.1's size, one sample of 5 views, 32 × 32 latents. Operators that start work, float32, "
            "geometry included; the volume operators count as one each, as on a GPU, where each is one kernel and a "
            "few small copies. Bytes alive between forward and backward pass, no gradient checkpointing of the U-Net, "
            "weights left out; bfloat16 is that of the weights too (autocast's copies of float32 ones come on top).\n",
            table(
                ["network", "operators, training", "operators, generation", "GB kept, float32", "GB kept, bfloat16"],
                [
                    [name, *operators[name], *(f"{num_bytes / 1e9:.2f}" for num_bytes in saved[name])]
                    for name in operators
                ],
            ),
            "An adapter's file, float32: everything that training adds to the frozen base.\n",
            table(
                ["network", "low-rank terms, MB", "whole file, MB"],
                [[name, *(f"{size:.0f}" for size in sizes)] for name, sizes in adapters.items()],
            ),
            f"One generation of {NUM_VIEWS} views of 2 objects with equal captions, 10 steps, guidance, then depth:\n",
            table(["what", "times"], list(generation.items())),
        ]
    )
    results = {
        "operators": operators,
        "saved_bytes": saved,
        "adapter_megabytes": adapters,
        "generation": dict(generation),
    }
    write("counts", title="Operators, memory and repetitions", text=text, results=results)


def adapter_megabytes(config: ViewDiffConfig) -> list[float]:
    """Of the low-rank terms, and of all, at Stable Diffusion 2.1's size."""
    state = adapter_state(ViewDiffUNet.meta(STABLE_DIFFUSION_2_UNET, config))
    sizes = {name: 4 * value.numel() / 1e6 for name, value in state.items()}
    return [sum(size for name, size in sizes.items() if ".lora_" in name), sum(sizes.values())]


def count_generation() -> Counter[str]:
    """How often the parts of a generation run."""
    counts: Counter[str] = Counter()

    def counted(name: str, function):  # type: ignore[no-untyped-def]
        def call(*args, **kwargs):  # type: ignore[no-untyped-def]
            counts[name] += 1
            return function(*args, **kwargs)

        return call

    base = build_tiny_base(TinyBaseConfig(), image_size=64, words=("a", "bear"), seed=0)
    projection = ProjectionConfig(blocks=(("mid_block", 8), ("up_blocks.1", 12)), num_samples=8)
    generator = SampleGenerator(ViewDiffUNet(base.unet, ViewDiffConfig(rank=4, projection=projection)), base)
    cameras = orbit(NUM_VIEWS, image_size=(64, 64), config=OrbitConfig())
    requests = [
        SampleRequest(
            world_to_camera=cameras.world_to_camera.numpy(),
            intrinsics=cameras.intrinsics.numpy(),
            image_size=(64, 64),
            scene_bounds=np.array([[-1.0] * 3, [1.0] * 3], dtype=np.float32),
            text="a bear",
            known_images=np.zeros((0, 64, 64, 3), dtype=np.uint8),
            seed=seed,
            sampling=SamplingConfig(num_steps=10, guidance_scale=7.5),
        )
        for seed in (0, 1)
    ]
    with (
        patch.object(model.unet, "compute_geometry", counted("geometry evaluations", compute_geometry)),
        patch.object(BaseModel, "decode", counted("VAE decodes", BaseModel.decode)),
        patch.object(BaseModel, "encode_text", counted("calls of the text encoder", BaseModel.encode_text)),
        patch.object(ViewDiffUNet, "forward", counted("calls of the network", ViewDiffUNet.forward)),
    ):
        generator.generate(requests)
    return counts


if __name__ == "__main__":
    main()
