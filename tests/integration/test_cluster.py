"""A local Ray asks for a token, its workers find the checkout, and later calls use it again."""

from __future__ import annotations

import logging
import os
import socket
import time
from itertools import pairwise
from pathlib import Path

import pytest
import ray

from infra.cluster.connection import CHECKOUT, _check_address, _start, _tell_of_cluster, cluster_gpus, ensure_ray
from infra.cluster.tasks import run_tasks
from infra.errors import UserError
from infra.log import get_logger


def test_a_local_cluster_is_started_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the mode was set: Ray, imported above, read it before."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    ensure_ray(num_cpus=2)
    node = ray.get_runtime_context().get_node_id()
    ensure_ray(num_cpus=3)
    assert ray.get_runtime_context().get_node_id() == node

    @ray.remote
    def seen_by_a_worker() -> tuple[str, str]:
        import infra.errors

        return infra.errors.__file__, os.environ["RAY_AUTH_MODE"]

    assert ray.get(seen_by_a_worker.remote()) == (str(CHECKOUT / "infra" / "errors.py"), "token")


def timed(row: dict[str, int], *, folder: Path) -> dict[str, float]:
    started = time.monotonic()
    time.sleep(0.2)
    return {"started": started, "ended": time.monotonic()}


@pytest.mark.parametrize("share", [0.6, 1000.0])
def test_no_more_tasks_run_than_fit_into_memory(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Also those that would not fit at all run, one by one."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ensure_ray(num_cpus=2)
    memory_bytes = int(share * ray.cluster_resources()["memory"])
    items = [{"number": number} for number in range(6)]
    found = list(run_tasks(timed, items, settings={}, folder=Path(), num_workers=2, memory_bytes=memory_bytes))
    found.sort(key=lambda item: item["started"])
    assert len(found) == 6
    assert all(first["ended"] <= second["started"] for first, second in pairwise(found))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:9", r"RAY_ADDRESS=127\.0\.0\.1:9 cannot be used"),
        ("http://127.0.0.1:8265", "takes jobs: submit with `ray job submit`"),
    ],
)
def test_an_address_of_no_cluster_is_named(address: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _check_address(address)


@pytest.mark.parametrize("runs", [True, False])
def test_a_cluster_that_is_not_used_is_named(
    runs: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Unless it is gone, and only what says where it was is left."""
    get_logger("ray")  # its first call turns propagation off
    monkeypatch.setattr(logging.getLogger("viewdiff"), "propagate", True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(ray._private.services, "find_bootstrap_address", lambda temp_dir: address)
        if not runs:
            server.close()
        _tell_of_cluster()
    assert (f"set RAY_ADDRESS={address}" in caplog.text) == runs


def test_a_machine_that_is_too_busy_for_ray_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_slow(**settings: object) -> None:
        raise Exception("The current node timed out during startup. Some of the raylet failed to start")

    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(ray, "init", too_slow)
    with pytest.raises(UserError, match="run the same command again"):
        _start(2)


def test_other_failures_of_ray_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**settings: object) -> None:
        raise RuntimeError("no shared memory")

    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(ray, "init", broken)
    with pytest.raises(RuntimeError, match="no shared memory"):
        _start(2)


def test_gpus_are_those_of_nodes_that_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert cluster_gpus() is None
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0}},  # a head
        {"Alive": True, "Resources": {"GPU": 8.0, "accelerator_type:H100": 1.0}},
        {"Alive": True, "Resources": {"GPU": 8.0, "accelerator_type:H100": 1.0}},
        {"Alive": True, "Resources": {"GPU": 2.0}},
        {"Alive": False, "Resources": {"GPU": 4.0, "accelerator_type:A100": 1.0}},
    ]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert cluster_gpus() == {"H100": 16, "unknown": 2}
    monkeypatch.setattr(ray, "nodes", lambda: nodes[:1])
    assert cluster_gpus() == {}
