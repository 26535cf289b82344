"""One training pass of `released` at Stable Diffusion 2.1's size on a CPU: `python -m benchmarks.bench_true_size`.

Random weights: time and memory do not depend on them. Each precision runs in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import nullcontext
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from benchmarks.counting import LATENT_SIZE, TEXT_SHAPE
from benchmarks.record import peak_resident_bytes, table, write
from model.layers.views import Scene
from model.unet import ViewDiffUNet
from pipelines.planning.network import STABLE_DIFFUSION_2_UNET
from pipelines.settings.presets import PRESETS
from tests.support.factories import look_at_cameras

NUM_VIEWS = 5
LIMIT_GIB = 20.0
PRECISIONS = ("float32", "bfloat16")


def run(precision: str) -> dict[str, Any]:
    """Forward and backward of one sample; gradients of all parameters must come out finite."""
    torch.manual_seed(0)
    network = ViewDiffUNet(UNet2DConditionModel.from_config(STABLE_DIFFUSION_2_UNET), PRESETS["released"]().train.model)
    network.train()
    scene = Scene(
        look_at_cameras(1, NUM_VIEWS, image_size=(256, 256)),
        torch.tensor([[[-1.0] * 3, [1.0] * 3]]),
        torch.full((1, NUM_VIEWS, 2), 0.3),
    )
    latents, started = torch.randn(1, NUM_VIEWS, 4, *LATENT_SIZE), time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else nullcontext():
        predicted = network(
            latents,
            torch.full((1, NUM_VIEWS), 500),
            text=torch.randn(1, *TEXT_SHAPE),
            scene=scene,
            hidden_views=1,
            opacity_noise_seeds=torch.tensor([1]),
        )
    forward_seconds = time.perf_counter() - started
    predicted.float().square().mean().backward()
    missing = [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())]
    if missing:
        raise ArithmeticError(f"{len(missing)} parameters without a finite gradient, the first is {missing[0]}")
    return {
        "precision": precision,
        "parameters": sum(p.numel() for p in network.parameters()),
        "forward_seconds": forward_seconds,
        "seconds": time.perf_counter() - started,
        "peak_gib": peak_resident_bytes() / 2**30,
    }


def main() -> None:
    """Measure, print, write docs/benchmarks/<date>-true-size.{json,md}."""
    if len(sys.argv) > 1:
        print(json.dumps(run(sys.argv[1])))
        return
    rows = []
    for precision in PRECISIONS:
        command = [sys.executable, "-m", "benchmarks.bench_true_size", precision]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        rows.append(json.loads(output.splitlines()[-1]))
    text = (
        f"`released`, {rows[0]['parameters'] / 1e6:.0f} M parameters, one sample of {NUM_VIEWS} views at 256 × 256, "
        "with gradient checkpointing as in the preset; float32 weights in both, bfloat16 by autocast as in training. "
        f"Limit {LIMIT_GIB:g} GiB.\n\n"
    ) + table(
        ["precision", "forward, s", "forward + backward, s", "peak memory of the process, GiB"],
        [
            [row["precision"], f"{row['forward_seconds']:.1f}", f"{row['seconds']:.1f}", f"{row['peak_gib']:.1f}"]
            for row in rows
        ],
    )
    write("true-size", title="One pass at true size on a CPU", text=text, results={"results": rows})


if __name__ == "__main__":
    main()
