"""A Ray cluster to work on: the one that this process belongs to, or a local one that ends with it.

The only file that calls `ray.init`.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import ray
from ray.util.placement_group import PlacementGroup

from infra.cluster.ray_internals import (
    address_of_this_machines_cluster,
    connect_only_when_asked,
    ids_of_ended_jobs,
    read_settings_again,
)
from infra.errors import UserError
from infra.log import get_logger
from infra.system.sockets import use_short_folder_for_ray

CHECKOUT = Path(__file__).resolve().parents[2]

_MIN_SLOTS = 4  # so that a stage's driver and two workers fit on a small machine too; slots are not processes
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to anybody
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a worker without a GPU keeps the variables it was given
    "RAY_gcs_server_port_wait_time_s": "180",  # a busy laptop needs longer than the 30 s that Ray gives its server
}
_IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it in the process of a submitted job
_CONNECT_SECONDS = 5.0
_SECONDS_BETWEEN_LOOKS = 0.25
_RAYLET, _HEAD = "on this machine (raylet)", "on the head node (gcs_server)"
_GPU_KIND = "accelerator_type:"  # prefix of the resource that names what a node has
_SLOW_START = "timed out during startup"
Result = TypeVar("Result")


def ensure_ray(*, num_cpus: int | None = None) -> None:
    """Connect this process to Ray, once: stages share the connection, because starting a cluster takes long.

    With RAY_ADDRESS set, as in a submitted job, its cluster is used. Otherwise a local one is started, with at least
    `num_cpus` slots for workers, which ends with this process; where a cluster's Ray runs on this machine, that it is
    not used is said.

    Raises:
        UserError: the cluster at RAY_ADDRESS cannot be reached or refuses the token, or a local one starts too slowly.
    """
    if ray.is_initialized():
        return
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    _require_token()
    connect_only_when_asked()
    address = os.environ.get("RAY_ADDRESS")
    with _signals_kept():
        if address:
            _connect(address)
        else:
            _tell_of_cluster()
            _start(num_cpus)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it is started, and a closed terminal would end its processes, before those have
    ended orderly that use them: they start without SIGHUP.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler, mask = signal.getsignal(signal.SIGTERM), signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def release_reservations() -> None:
    """Free the room that actors of this process's job have reserved and left: Ray itself keeps it as long as the job.

    Not to be called while an actor of it still uses its reservation.
    """
    job = ray.get_runtime_context().get_job_id()
    for name, group in ray.util.placement_group_table().items():
        if name.endswith(job) and group["state"] != "REMOVED":  # an id ends with that of its job
            ray.util.remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))


def ended_jobs() -> set[str]:
    """Ids of the cluster's jobs whose driver has ended, however it did: Ray notes it at once. None are known to a
    driver that is no node of the cluster itself (ray://).
    """
    if ray.util.client.ray.is_connected():
        return set()
    return ids_of_ended_jobs()


def cluster_gpus() -> dict[str, int] | None:
    """How many GPUs of each kind the cluster's nodes have, as Ray found them; None while not connected."""
    if not ray.is_initialized():
        return None
    counts: Counter[str] = Counter()
    for node in ray.nodes():
        resources = node["Resources"] if node["Alive"] else {}
        kinds = [name.removeprefix(_GPU_KIND) for name in resources if name.startswith(_GPU_KIND)]
        counts[kinds[0] if kinds else "unknown"] += int(resources.get("GPU", 0))
    return dict(+counts)


def call_while_ray_lives(call: Callable[[], Result], *, meanwhile: Callable[[], None] = lambda: None) -> Result:
    """`call()`, from a thread; until it returns, this one looks again and again whether Ray still lives, and calls
    `meanwhile()`.

    When Ray's process on this machine dies, Ray itself would notice after a quarter of a minute and then, in the middle
    of whatever Python does, end this process.

    Raises:
        UserError: Ray's process on this machine was killed, or the cluster's head was.
    """
    addresses = _watched_addresses(ray.get_runtime_context().get_node_id())
    result = Future[Result]()
    # A daemon, because the interpreter waits for the others when it ends, and this one may never come back.
    threading.Thread(target=_fulfil, args=(result, call), daemon=True).start()
    while not wait([result], timeout=_SECONDS_BETWEEN_LOOKS).done:
        _require_alive(addresses)
        meanwhile()
    if result.exception() is not None:
        _require_alive(addresses)  # or that is why
    return result.result()


def _fulfil(result: Future[Result], call: Callable[[], Result]) -> None:
    try:
        result.set_result(call())
    except BaseException as error:  # noqa: BLE001 it is raised again where it is waited for
        result.set_exception(error)


@functools.cache  # the head is asked once, while it still answers
def _watched_addresses(node_id: str) -> dict[str, tuple[str, int]]:
    """Where Ray's process on this machine takes connections, and the head's. `node_id`: of this machine."""
    if os.environ.get("RAY_ADDRESS", "").startswith("ray://"):
        return {}  # this machine is no node
    node = next(node for node in ray.nodes() if node["NodeID"] == node_id)
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    return {_RAYLET: (node["NodeManagerAddress"], node["NodeManagerPort"]), _HEAD: (host, int(port))}


def _require_alive(addresses: dict[str, tuple[str, int]]) -> None:
    for name, address in addresses.items():
        try:
            socket.create_connection(address, _CONNECT_SECONDS).close()
        except ConnectionRefusedError as error:
            raise UserError(
                f"Ray's process {name} was killed, as happens when memory runs out; end other heavy programs or take "
                "fewer --num-workers, and run the same command again: it resumes"
            ) from error
        except OSError:
            continue  # too busy to answer, or cut off for a while: Ray knows how long it waits


def _require_token() -> None:
    """Let every cluster want a token: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or the one that Ray keeps under HOME."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    # Ray read the mode when it was imported, perhaps before it was set: without this its servers would ask for a token
    # that this process does not send. Ray's own default for local clusters does the same.
    read_settings_again()


def _connect(address: str) -> None:
    _check_address(address)
    # A job's workers run in the copy of the checkout that was submitted with it.
    runtime_env = None if _IN_JOB in os.environ else {"working_dir": str(CHECKOUT)}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, runtime_env=runtime_env)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise _unreachable(address, str(error).strip().splitlines()[0]) from error


def _check_address(address: str) -> None:
    """Knock first: Ray itself goes on trying for a quarter of an hour."""
    if address.startswith(("http://", "https://")):
        raise UserError(f"RAY_ADDRESS={address} takes jobs: submit with `ray job submit`, or unset it to run locally")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # "auto" and the like
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise _unreachable(address, str(error)) from error


def _unreachable(address: str, reason: str) -> UserError:
    remedy = "start it and give its token in RAY_AUTH_TOKEN, or unset RAY_ADDRESS to run locally"
    return UserError(f"Ray cluster at RAY_ADDRESS={address} cannot be used ({reason}); {remedy}")


def _tell_of_cluster() -> None:
    """Say that this machine belongs to a cluster, which somebody may have meant."""
    address = address_of_this_machines_cluster()
    if address is None:
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError):
        return  # of a Ray that was killed
    get_logger("ray").warning(
        "this machine belongs to the Ray cluster at %s, which is not used: a Ray of this command's own starts here; "
        "set RAY_ADDRESS=%s to run on the cluster",
        address,
        address,
    )


def _start(num_cpus: int | None) -> None:
    use_short_folder_for_ray()
    # The cluster's processes are children of this one: workers find the checkout's packages in what they inherit.
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(CHECKOUT), inherited] if inherited else [str(CHECKOUT)])
    try:
        ray.init(
            address="local",
            num_cpus=max(num_cpus or 0, os.cpu_count() or 1, _MIN_SLOTS),
            include_dashboard=False,  # ten more processes
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except Exception as error:
        if _SLOW_START not in str(error):  # Ray has no type for it
            raise
        raise UserError(
            "Ray did not start on this machine in the 30 s that it gives itself; end other heavy programs and run the "
            "same command again"
        ) from error
