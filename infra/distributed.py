"""Worker processes of a training: started, watched and restarted by Ray Train. The only file that imports ray.train."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from infra.errors import UserError
from infra.storage import as_user_error

MAX_FAILURES = 3  # a dead worker or node costs one; the same command run again starts counting anew
_CPUS_PER_WORKER = 1
_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a dead worker is noticed; 2 s by default
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # a busy machine takes minutes to import torch in every worker
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # workers stay in the checkout, so that its packages are found
}


def run_workers(
    run: Callable[[Any], None], job: Any, *, num_workers: int, storage_dir: Path, name: str, use_gpu: bool
) -> None:
    """Call `run(job)` in `num_workers` processes that form one `torch.distributed` group, one CPU (and one GPU) each.

    When a worker dies or fails, all are ended and started again, up to `MAX_FAILURES` times: `run` must resume from
    what it saved. `storage_dir` is a scratch folder that all nodes see.

    Raises:
        UserError: what `run` raised as such, a full disk, or a FloatingPointError.
        KeyboardInterrupt: the person at the keyboard stopped it.
        ray.train.TrainingFailedError: it failed too often in another way.
    """
    for key, value in _SETTINGS.items():
        os.environ.setdefault(key, value)
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = {"CPU": _CPUS_PER_WORKER} | ({"GPU": 1} if use_gpu else {})
    trainer = TorchTrainer(
        _run_in_worker,
        train_loop_config={"run": run, "job": job},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=name, storage_path=str(storage_dir), failure_config=FailureConfig(max_failures=MAX_FAILURES)
        ),
    )
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except SystemExit:  # what Ray Train's own handler makes of Ctrl-C
        raise KeyboardInterrupt from None
    except TrainingFailedError as error:
        raise _user_error(error, storage_dir) or error from None
    finally:
        signal.signal(signal.SIGINT, interrupt)  # Ray Train leaves its handler, which then stops nothing any more


def _run_in_worker(config: dict[str, Any]) -> None:
    torch.set_num_threads(_CPUS_PER_WORKER)  # more threads than cores slow each other; sums also depend on their number
    config["run"](config["job"])


def _user_error(error: Exception, folder: Path) -> UserError | None:
    """The message for a person among the workers' errors, if there is one: theirs, or of a full disk, or of numbers
    that are no longer finite.
    """
    for failure in getattr(error, "worker_failures", {}).values():
        cause = getattr(failure, "_base_exc", failure)  # Ray keeps the worker's exception beside its traceback's text
        if isinstance(cause, UserError):
            return cause
        if isinstance(cause, FloatingPointError):
            return UserError(f"train: {cause}")
        if isinstance(cause, OSError) and (message := as_user_error(cause, folder.parent)):
            return message
    return None
