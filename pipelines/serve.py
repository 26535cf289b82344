"""The model behind Ray Serve: requests from anywhere, denoised in batches. The only file that knows Ray Serve."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ray import serve
from ray.serve.config import ProxyLocation
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from pipelines.generator import GeneratedSample, SampleGenerator, SampleRequest

BATCH_WAIT_SECONDS = 0.05  # a request waits so long for company; denoising takes seconds


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What to serve, and on how many machines."""

    name: str
    """Application name; another one for another model on the same cluster."""
    model_dir: Path
    """Folder of `ViewDiffUNet.save_pretrained`."""
    base_dir: Path
    """Diffusers folder of the base model."""
    max_batch_size: int
    """Samples denoised together."""
    num_replicas: int = 1
    """Copies of the model."""
    use_gpu: bool = False
    """One GPU per replica."""


class _Replica:
    def __init__(self, config: ServeConfig) -> None:
        # Ray limits a worker to the cores it reserved, of which a replica on a laptop reserves only one.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // (1 if config.use_gpu else config.num_replicas)))
        device = "cuda" if config.use_gpu else "cpu"
        self._generator = SampleGenerator.load(config.model_dir, config.base_dir, device=device)
        self.generate.set_max_batch_size(config.max_batch_size)

    @serve.batch(batch_wait_timeout_s=BATCH_WAIT_SECONDS)
    async def generate(self, requests: list[SampleRequest]) -> list[GeneratedSample]:
        # In a thread, so that the replica answers health checks and collects the next batch meanwhile.
        return await asyncio.to_thread(self._generator.generate, requests)

    async def reconstruct(self, images: np.ndarray) -> np.ndarray:
        return await asyncio.to_thread(self._generator.reconstruct, images)


class GeneratorClient:
    """Asks a running deployment; answers come as futures with `.result()`."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    def generate(self, request: SampleRequest) -> DeploymentResponse:
        """Will hold a `GeneratedSample`."""
        return self._handle.generate.remote(request)

    def reconstruct(self, images: np.ndarray) -> DeploymentResponse:
        """Will hold images uint8 [N, H, W, 3] like those given, through the autoencoder and back."""
        return self._handle.reconstruct.remote(images)


@contextmanager
def serving(config: ServeConfig) -> Iterator[GeneratorClient]:
    """Deploy on the connected Ray cluster, not reachable over HTTP, and take the deployment down at the end."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(proxy_location=ProxyLocation.Disabled)
    deployment = serve.deployment(
        _Replica,
        name="ViewGenerator",
        num_replicas=config.num_replicas,
        max_ongoing_requests=4 * config.max_batch_size,  # more than one batch, or none would ever fill
        ray_actor_options={"num_cpus": 1, "num_gpus": int(config.use_gpu)},
    )
    handle = serve.run(deployment.bind(config), name=config.name, route_prefix=None)
    try:
        yield GeneratorClient(handle)
    finally:
        serve.delete(config.name)
