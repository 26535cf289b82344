"""The model behind Ray Serve: requests from anywhere, denoised in batches. The only file that knows Ray Serve.

Every evaluation deploys an application of its own, whose name holds the job that its driver is in Ray's eyes. Ray notes
the end of a driver at once, however it ends, and each replica looks for that: an application ends with its driver, and
gives its GPUs back. A replica that dies is replaced by Serve; what it was asked has to be asked again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.config import ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse
from ray.serve.schema import ApplicationStatus

from infra.cluster import call_while_ray_lives, ended_jobs
from infra.errors import UserError
from infra.log import format_seconds, get_logger
from pipelines.generator import GeneratedSample, SampleGenerator, SampleRequest

BATCH_WAIT_SECONDS = 0.05  # a request waits so long for company; denoising takes seconds
LOADS = 3  # so often replicas try to load the model before the application has failed
SECONDS_TO_SHUT_DOWN = 5.0  # for a replica's last requests, for whose answers nobody waits
SECONDS_TO_REPLACE = 900.0  # without any replica, after which a waiting request gives up
SECONDS_BETWEEN_LOOKS = 5.0  # at the application, and of each replica at its driver
SECONDS_BETWEEN_LINES = 30.0  # about what is waited for

_DEPLOYMENT = "ViewGenerator"
_NAME = re.compile(r"viewdiff-.*-(?P<job>[0-9a-f]+)-[0-9a-f]{8}")  # see `_new_name`


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
        """Wait for it, as long as there are replicas or Serve replaces them; every half a minute that is said.

        Raises:
            RequestError: the model raised, or the replica died that had the request.
            UserError: the application cannot answer any more, or Ray itself was killed.
        """
        try:
            return call_while_ray_lives(partial(_await, self._response, self._application))
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
    serve.start(proxy_location=ProxyLocation.Disabled)
    for orphan in _end_orphans():
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
    name = _new_name(config.model)
    target = serve.RunTarget(deployment.bind(config), name=name, route_prefix=None)
    try:
        (handle,) = serve.run_many([target], wait_for_applications_running=False)
        call_while_ray_lives(partial(_wait_until_running, name))
        yield GeneratorClient(handle, name)
    finally:
        _take_down(name)


def _new_name(model: str) -> str:
    """A name that no other evaluation has, and that says who has to live for it."""
    return f"viewdiff-{model}-{ray.get_runtime_context().get_job_id()}-{uuid.uuid4().hex[:8]}"


def _end_with_driver() -> None:
    """In each replica: take its application down when its driver has ended, and those of others.

    Theirs have replicas of their own that do so, unless they still wait for room.
    """
    while True:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        try:
            _end_orphans()
        except (RayError, RayServeException) as error:  # Serve's controller is being replaced
            get_logger("serve").warning("%s", error)


def _end_orphans() -> list[str]:
    """Take down the applications whose driver has ended, without waiting for it; returns their names."""
    names = {name: _NAME.fullmatch(name) for name in serve.status().applications}
    jobs = ended_jobs()
    orphans = [name for name, match in names.items() if match and match["job"] in jobs]
    for name in orphans:
        serve.delete(name, _blocking=False)
    return orphans


def _take_down(name: str) -> None:
    try:
        call_while_ray_lives(partial(serve.delete, name))
    except (UserError, TimeoutError, RayError, RayServeException) as error:  # and perhaps that is why it ends
        get_logger("evaluate").warning("%s is not taken down yet (%s); it ends with this process", name, error)


def _wait_until_running(name: str) -> None:
    """Wait until every replica has loaded the model; say every half a minute that it is so. UserError if none can."""
    started = said = time.monotonic()
    while (state := _look(name)).status != ApplicationStatus.RUNNING:
        if time.monotonic() - said > SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            get_logger("evaluate").info(
                "waiting for the model to be loaded, since %s (%s)", format_seconds(said - started), state
            )
        time.sleep(0.1)


def _await(response: DeploymentResponse, name: str) -> Any:
    """The response's result; looks at the application now and then, which may have come to an end."""
    started = said = served = time.monotonic()
    while True:
        try:
            return response.result(timeout_s=SECONDS_BETWEEN_LOOKS)
        except RayTaskError:
            raise  # it may be a TimeoutError, too
        except TimeoutError:
            state, now = _look(name), time.monotonic()
        served = now if state.status == ApplicationStatus.RUNNING else served
        if now - served > SECONDS_TO_REPLACE:
            raise UserError(f"evaluate: no replica of the model since {format_seconds(now - served)} ({state})")
        if now - said > SECONDS_BETWEEN_LINES:
            said = now
            get_logger("evaluate").info("waiting for an answer since %s (%s)", format_seconds(now - started), state)


@dataclass(frozen=True)
class _State:
    status: ApplicationStatus
    replicas: str  # how many there are in which state
    problem: str  # what Serve says, in a line

    def __str__(self) -> str:
        return f"replicas: {self.replicas or 'none'}{self.problem and '; '}{self.problem}"


def _look(name: str) -> _State:
    """The application as it is. Raises UserError when it has come to an end."""
    application = serve.status().applications.get(name)
    if application is None or application.status == ApplicationStatus.DELETING:
        raise UserError(f"evaluate: somebody took down {name}, which it needs; run the same command again: it resumes")
    deployments = application.deployments.values()
    replicas = [f"{count} {state.lower()}" for each in deployments for state, count in each.replica_states.items()]
    problem = next((_last_line(each.message) for each in deployments if each.message), "")
    if application.status == ApplicationStatus.DEPLOY_FAILED:
        raise UserError(f"evaluate: the model cannot be served: {problem or _last_line(application.message)}")
    return _State(application.status, ", ".join(replicas), problem)


def _last_line(text: str) -> str:
    """Of a traceback the exception, which a UserError of ours need not be called."""
    line = text.strip().splitlines()[-1].strip()
    return line.removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")


def _in_a_line(error: BaseException) -> str:
    """An exception of whatever program, for a person."""
    text = (str(error).strip().splitlines() or [""])[0]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
