"""What this project takes from inside Ray, where Ray has no public way to it; of Ray Train see ray_train_internals.py.

tests/unit/project/test_borrowed.py names each thing that a new version of Ray no longer has.
"""

from __future__ import annotations

import ray


def connect_only_when_asked() -> None:
    """Keep Ray from starting by itself: threads that used a Ray that was killed would start another."""
    ray._private.auto_init_hook.enable_auto_connect = False


def read_settings_again() -> None:
    """Let Ray see its environment variables as they are now; it has read them when it was imported."""
    ray._raylet.Config.initialize("")


def ids_of_ended_jobs() -> set[str]:
    """Of the cluster's jobs whose driver has ended. This process must be a node of the cluster itself."""
    return {job["JobID"] for job in ray._private.state.jobs() if job["IsDead"]}


def address_of_this_machines_cluster() -> str | None:
    """Address "host:port" that `ray start` has left on this machine, which RAY_ADDRESS=auto takes; None without any."""
    address: str | None = ray._private.services.find_bootstrap_address(None)
    return address
