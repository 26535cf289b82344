"""A Ray cluster to work on: the one that this process belongs to, or a local one for as long as it is needed.

The only file that calls `ray.init`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Ray reads these when it is imported: every cluster wants a token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or the one that
# Ray keeps under HOME), and nothing is sent to anybody.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray

from infra.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[1]

_MIN_SLOTS = 4  # so that a stage's driver and two workers fit on a small machine too; slots are not processes
_PASSED_TO_WORKERS = ("OMP_NUM_THREADS", "TORCH_EXTENSIONS_DIR", "HF_HOME", "HF_HUB_OFFLINE")


@contextmanager
def ray_session(*, num_cpus: int | None = None) -> Iterator[None]:
    """Ray for the body of a `with`.

    Within a session that is already open nothing is done. With RAY_ADDRESS set, as in a submitted job, its cluster is
    used and left running. Otherwise a local one is started, with at least `num_cpus` slots for workers, and ended
    after.

    Raises:
        UserError: the cluster at RAY_ADDRESS cannot be reached or refuses the token.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _connect(address)
    else:
        _start(num_cpus)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, runtime_env=_runtime_env())
    except (ConnectionError, ray.exceptions.RaySystemError, ray.exceptions.AuthenticationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"Ray cluster at RAY_ADDRESS={address}: {reason}; start it, or give its token in RAY_AUTH_TOKEN"
        ) from error


def _start(num_cpus: int | None) -> None:
    ray.init(
        address="local",
        num_cpus=max(num_cpus or 0, os.cpu_count() or 1, _MIN_SLOTS),
        log_to_driver=False,
        logging_level=logging.WARNING,
        runtime_env=_runtime_env(),
    )


def _runtime_env() -> dict[str, dict[str, str]]:
    """Lets workers import this checkout's packages and use the driver's caches."""
    passed = {name: os.environ[name] for name in _PASSED_TO_WORKERS if name in os.environ}
    return {"env_vars": {"PYTHONPATH": str(CHECKOUT), **passed}}
