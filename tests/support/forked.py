"""Calls in a forked process, which may stop or die after any request by which it changes something in MLflow: between
others there is nothing that a death could leave behind. The parent makes no requests itself.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.store.model_registry import rest_store, sqlalchemy_store  # noqa: F401  here, not in every child: it takes
from mlflow.store.tracking import sqlalchemy_store as tracking_store  # noqa: F401  seconds

import infra.tracking.experiment
import infra.tracking.registry

AfterRequest = Callable[[int, str], None]
"""Called in the child with the number of its changes so far and the last request's name."""
_READING = ("_", "get_", "search_", "list_")  # names of requests that change nothing, and of what is no request


@dataclass(frozen=True)
class Child:
    """A process that carries out a call."""

    pid: int
    answer: int  # file that it writes the result to

    def result(self) -> Any:
        """What the call returned, once it has; None if the process was killed. Fails if the call did."""
        with os.fdopen(self.answer, "rb") as answer:
            text = answer.read()
        _, status = os.waitpid(self.pid, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return None
        value = json.loads(text)
        assert "failed" not in value, value["failed"]
        return value["returned"]


def start(call: Callable[[], Any], after_request: AfterRequest = lambda number, name: None) -> Child:
    """Begin a call that returns something that JSON knows."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return Child(pid, reading)
    try:
        _watch_requests(after_request)
        value = {"returned": call()}
    except BaseException:  # noqa: BLE001 it is told where the result is asked for
        value = {"failed": traceback.format_exc()}
    with os.fdopen(writing, "wb") as answer:
        answer.write(json.dumps(value).encode())
    os._exit(0)


def run(call: Callable[[], Any], after_request: AfterRequest = lambda number, name: None) -> Any:
    """A call's result, see `Child.result`."""
    return start(call, after_request).result()


def die_after(count: int) -> AfterRequest:
    """SIGKILL to oneself as soon as so many changes were answered."""

    def after_request(number: int, name: str) -> None:
        if number == count:
            os.kill(os.getpid(), signal.SIGKILL)

    return after_request


def changes_of(call: Callable[[], Any]) -> list[str]:
    """The requests by which a call changes something; it is carried out."""
    names: list[str] = []

    def counted() -> list[str]:
        call()
        return names

    return list(run(counted, lambda number, name: names.append(name)))


def _watch_requests(after_request: AfterRequest) -> None:
    number = 0

    class WatchedClient(MlflowClient):
        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            if name.startswith(_READING) or not callable(value):
                return value

            @functools.wraps(value)
            def watched(*arguments: Any, **options: Any) -> Any:
                nonlocal number
                result = value(*arguments, **options)
                number += 1
                after_request(number, name)
                return result

            return watched

    for module in (infra.tracking.experiment, infra.tracking.registry):
        module.MlflowClient = WatchedClient  # type: ignore[attr-defined, misc]
