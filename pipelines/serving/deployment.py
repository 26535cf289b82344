"""The model behind Ray Serve: requests from anywhere, denoised in batches. This file and application.py are the
only ones that know Ray Serve.

Every evaluation deploys an application of its own, whose name holds the job that its driver is in Ray's eyes. Ray notes
the end of a driver at once, however it ends, and each replica looks for that: an application ends with its driver, and
gives its GPUs back. A replica that dies is replaced by Serve; what it was asked has to be asked again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import serve
from ray.exceptions import ActorAlreadyExistsError, RayActorError, RayError, RayTaskError
from ray.serve.config import ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from infra.cluster.connection import call_while_ray_lives
from infra.errors import UserError
from infra.log import get_logger
from pipelines.generation.generator import GeneratedSample, SampleGenerator, SampleRequest
from pipelines.serving.application import (
    SECONDS_BETWEEN_LOOKS,
    end_orphans,
    new_name,
    take_down,
    wait_for_answer,
    wait_until_running,
)

BATCH_WAIT_SECONDS = 0.05  # a request waits so long for company; denoising takes seconds
LOADS = 3  # so often replicas try to load the model before the application has failed
SECONDS_TO_SHUT_DOWN = 5.0  # for a replica's last requests, for whose answers nobody waits

_DEPLOYMENT = "ViewGenerator"


class RequestError(Exception):
    """A request got no answer, for the reason that is the message.

    `replica_lost`: the replica that had it died, perhaps of something else; otherwise the model raised.
    """

    def __init__(self, reason: str, *, replica_lost: bool) -> None:
        super().__init__(reason)
        self.replica_lost = replica_lost


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What to serve, and on how many machines."""

    model: str
    """What tells the model from others: a part of the application's name."""
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
        threading.Thread(target=_end_with_driver, daemon=True).start()
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


class Reply:
    """What the model answers to a request, which may not be there yet."""

    def __init__(self, response: DeploymentResponse, application: str) -> None:
        self._response, self._application = response, application

    def result(self) -> Any:
        """Wait for it, as long as there are replicas or Serve replaces them; every minute that is said.

        Raises:
            RequestError: the model raised, or the replica died that had the request.
            UserError: the application cannot answer any more, or Ray itself was killed.
        """
        try:
            return call_while_ray_lives(partial(wait_for_answer, self._response, self._application))
        except RayTaskError as error:
            raise RequestError(_in_a_line(error.cause), replica_lost=isinstance(error.cause, RayActorError)) from error
        except (RayError, RayServeException) as error:
            raise RequestError(_in_a_line(error), replica_lost=True) from error


class GeneratorClient:
    """Asks a running application."""

    def __init__(self, handle: DeploymentHandle, application: str) -> None:
        self._handle, self._application = handle, application

    def generate(self, request: SampleRequest) -> Reply:
        """Its result is a `GeneratedSample`."""
        return Reply(self._handle.generate.remote(request), self._application)

    def reconstruct(self, images: np.ndarray) -> Reply:
        """Its result is images uint8 [N, H, W, 3] like those given, through the autoencoder and back."""
        return Reply(self._handle.reconstruct.remote(images), self._application)


@contextmanager
def serving(config: ServeConfig) -> Iterator[GeneratorClient]:
    """Deploy on the connected Ray cluster, not reachable over HTTP, and take the deployment down at the end.

    What evaluations have left that were killed is taken down first.

    Raises:
        UserError: the model cannot be loaded, or Ray itself was killed.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    _start_serve()
    for orphan in end_orphans():
        get_logger("evaluate").warning("took down %s, which an evaluation that was killed had left", orphan)
    deployment = serve.deployment(
        _Replica,
        name=_DEPLOYMENT,
        num_replicas=config.num_replicas,
        max_ongoing_requests=4 * config.max_batch_size,  # more than one batch, or none would ever fill
        max_constructor_retry_count=LOADS,
        graceful_shutdown_timeout_s=SECONDS_TO_SHUT_DOWN,
        ray_actor_options={"num_cpus": 1, "num_gpus": int(config.use_gpu)},
    )
    name = new_name(config.model)
    target = serve.RunTarget(deployment.bind(config), name=name, route_prefix=None)
    try:
        (handle,) = serve.run_many([target], wait_for_applications_running=False)
        call_while_ray_lives(partial(wait_until_running, name))
        yield GeneratorClient(handle, name)
    finally:
        take_down(name)


def _start_serve() -> None:
    """Connect to the cluster's Serve, or start it. Where two evaluations start it at once, the later one connects."""
    try:
        serve.start(proxy_location=ProxyLocation.Disabled)
    except ActorAlreadyExistsError:
        serve.start(proxy_location=ProxyLocation.Disabled)


def _end_with_driver() -> None:
    """In each replica: take its application down when its driver has ended, and those of others.

    Theirs have replicas of their own that do so, unless they still wait for room.
    """
    while True:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        try:
            end_orphans()
        except (RayError, RayServeException) as error:  # Serve's controller is being replaced
            get_logger("serve").warning("%s", error)


def _in_a_line(error: BaseException) -> str:
    """An exception of whatever program, for a person."""
    text = (str(error).strip().splitlines() or [""])[0]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
