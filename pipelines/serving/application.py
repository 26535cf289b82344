"""An application of Ray Serve: what it is called, how it is, how long it is waited for, and when it ends."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentResponse
from ray.serve.schema import ApplicationStatus, ReplicaState

from infra.cluster.connection import call_while_ray_lives, ended_jobs
from infra.errors import UserError
from infra.log import format_seconds, get_logger

SECONDS_TO_REPLACE = 900.0  # without any replica, after which a waiting request gives up
SECONDS_BETWEEN_LOOKS = 5.0  # at the application, and of each replica at its driver
SECONDS_BETWEEN_LINES = 60.0  # about what is waited for

_NAME = re.compile(r"viewdiff-.*-(?P<job>[0-9a-f]+)-[0-9a-f]{8}")  # see `new_name`


def new_name(model: str) -> str:
    """A name that no other evaluation has, and that says who has to live for it."""
    return f"viewdiff-{model}-{ray.get_runtime_context().get_job_id()}-{uuid.uuid4().hex[:8]}"


def end_orphans() -> list[str]:
    """Take down the applications whose driver has ended, without waiting for it; returns their names."""
    applications = serve.status().applications.items()
    names = [name for name, application in applications if application.status != ApplicationStatus.DELETING]
    jobs = ended_jobs()
    orphans = [name for name in names if (match := _NAME.fullmatch(name)) and match["job"] in jobs]
    for name in orphans:
        serve.delete(name, _blocking=False)
    return orphans


def take_down(name: str) -> None:
    """Take an application down and wait for that, a minute at most. If it fails, that is said: it ends all the same."""
    try:
        call_while_ray_lives(partial(serve.delete, name))
    except (UserError, TimeoutError, RayError, RayServeException) as error:  # and perhaps that is why it ends
        get_logger("evaluate").warning("%s is not taken down yet (%s); it ends with this process", name, error)


def wait_until_running(name: str) -> None:
    """Wait until every replica has loaded the model; say every minute that it is so. UserError if none can."""
    started = said = time.monotonic()
    while (state := look(name)).status != ApplicationStatus.RUNNING:
        if time.monotonic() - said > SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            get_logger("evaluate").info(
                "the model is not loaded yet after %s (%s)", format_seconds(said - started), state
            )
        time.sleep(0.1)


def wait_for_answer(response: DeploymentResponse, name: str) -> Any:
    """The response's result; looks at the application now and then, which may have come to an end."""
    started = said = served = time.monotonic()
    while True:
        try:
            return response.result(timeout_s=SECONDS_BETWEEN_LOOKS)
        except RayTaskError:
            raise  # it may be a TimeoutError, too
        except TimeoutError:
            state, now = look(name), time.monotonic()
        served = now if state.num_running else served
        if now - served > SECONDS_TO_REPLACE:
            raise UserError(
                f"evaluate: no replica of the model has run for {format_seconds(now - served)} ({state}); see `ray "
                "status` for what there is room for, and run the same command again: it resumes"
            )
        if now - said > SECONDS_BETWEEN_LINES:
            said = now
            get_logger("evaluate").info("no answer yet after %s (%s)", format_seconds(now - started), state)


@dataclass(frozen=True)
class ApplicationState:
    status: ApplicationStatus
    num_running: int
    replicas: str  # how many there are in which state
    problem: str  # what Serve says, in a line

    def __str__(self) -> str:
        return f"replicas: {self.replicas or 'none'}{self.problem and '; '}{self.problem}"


def look(name: str) -> ApplicationState:
    """The application as it is. Raises UserError when it has come to an end."""
    application = serve.status().applications.get(name)
    if application is None or application.status == ApplicationStatus.DELETING:
        raise UserError(f"evaluate: somebody took down {name}, which it needs; run the same command again: it resumes")
    deployments = application.deployments.values()
    replicas = [f"{count} {state.lower()}" for each in deployments for state, count in each.replica_states.items()]
    num_running = sum(each.replica_states.get(ReplicaState.RUNNING, 0) for each in deployments)
    problem = next((_last_line(each.message) for each in deployments if each.message), "")
    if application.status == ApplicationStatus.DEPLOY_FAILED:
        raise UserError(f"evaluate: the model cannot be served: {problem or _last_line(application.message)}")
    return ApplicationState(application.status, num_running, ", ".join(replicas), problem)


def _last_line(text: str) -> str:
    """Of a traceback the exception, which a UserError of ours need not be called."""
    line = text.strip().splitlines()[-1].strip()
    return line.removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")
