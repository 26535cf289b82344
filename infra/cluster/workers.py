"""Worker processes of a training: started, watched and restarted by Ray Train. With infra/cluster/events.py the only
file that imports ray.train.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from infra.cluster.connection import call_while_ray_lives, release_reservations
from infra.errors import UserError
from infra.log import get_logger
from infra.storage.files import as_user_error, atomic_write
from infra.system.stop_request import StopRequest

_CPUS_PER_WORKER = 1
_SECONDS_BETWEEN_RESIZES = 60.0  # how soon new nodes are used; all workers start anew then
_SECONDS_BETWEEN_LOOKS = 0.5
_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a dead worker is noticed; 2 s by default
    # How long to wait for room for all workers before it is counted anew how many there is room for; 60 s by default.
    # What is counted is up to 20 s old, so after a node was lost the first count is too high.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # how soon it is noticed that a node is about to go; 5 s by default
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # workers stay in the checkout, so that its packages are found
}


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Worker processes, one CPU (and one GPU) each."""

    most: int
    least: int  # while there is room for fewer than `most`, so many will do
    use_gpu: bool
    max_failures: int  # of a worker, a node or the controller; the same command run again counts anew


def run_workers(
    run: Callable[[Any], None],
    job: Any,
    workers: Workers,
    *,
    storage_dir: Path,
    checkpoint_request: Path,
    notices: Path,
) -> None:
    """Call `run(job)` in processes that form one `torch.distributed` group.

    When a worker dies or fails, all are ended and started again: `run` must resume from what it saved. The same happens
    when there is room for more workers, and when a node is about to go; before that the file `checkpoint_request` is
    created, which `run` has to remove when it has saved what it did. `storage_dir` is a scratch folder that all nodes
    see, and `notices` a file in it, of which each new line is shown. A FloatingPointError ends them at once, because it
    would come again: all workers must raise it alike. After SIGTERM a checkpoint is asked for, and waited for, first.

    Raises:
        UserError: what `run` raised as such, a full disk, a FloatingPointError, or Ray itself was killed.
        KeyboardInterrupt: the person at the keyboard stopped it, or SIGTERM.
        ray.train.TrainingFailedError: it failed too often in another way.
    """
    for key, value in _SETTINGS.items():
        os.environ.setdefault(key, value)
    import ray
    from ray.train import TrainingFailedError

    from infra.cluster.events import TrainingEvents

    storage_dir.mkdir(parents=True, exist_ok=True)
    name = uuid.uuid4().hex[:8]
    shown, diverged = _Notices(notices), storage_dir / f"{name}-diverged.txt"
    stop = StopRequest(checkpoint_request)
    events = TrainingEvents(checkpoint_request=checkpoint_request, notices=notices, least_workers=workers.least)
    told = {"run": run, "job": job, "diverged": diverged}
    num_failures = 0

    def look() -> None:
        shown.show()
        stop.obey()

    while True:
        trainer = _trainer(told, workers, callbacks=[events], name=name, storage_path=str(storage_dir))
        try:
            with stop:
                call_while_ray_lives(trainer.fit, meanwhile=look)
            if diverged.exists():
                raise UserError(f"train: {diverged.read_text()}")
            if stop.is_asked:  # too late for a checkpoint: nothing was left to do
                raise KeyboardInterrupt
            return
        except TrainingFailedError as error:
            raise _user_error(error, storage_dir) or _lost_worker(error, workers.max_failures) or error from None
        except ray.exceptions.RayActorError as error:  # Ray Train does not restart its own controller
            num_failures += 1
            if num_failures > workers.max_failures:
                reason = str(error).strip().splitlines()[0]
                raise UserError(
                    f"train: Ray Train's controller ended {num_failures} times ({reason}); run the same command again: "
                    "it resumes"
                ) from error
            get_logger("train").warning("Ray Train's controller was lost; going on from the newest checkpoint")
            release_reservations()  # of its workers, for those of its successor
        except KeyboardInterrupt:
            ray.shutdown()  # ends the workers
            raise
        finally:
            shown.show()


def _trainer(told: dict[str, Any], workers: Workers, **run_config: Any) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from infra.cluster.ray_train_internals import Trainer

    return Trainer(
        _run_in_worker,
        train_loop_config=told,
        torch_config=TorchConfig(backend="nccl" if workers.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers.most if workers.least == workers.most else (workers.least, workers.most),
            use_gpu=workers.use_gpu,
            resources_per_worker={"CPU": _CPUS_PER_WORKER} | ({"GPU": 1} if workers.use_gpu else {}),
            elastic_resize_monitor_interval_s=_SECONDS_BETWEEN_RESIZES,
        ),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=workers.max_failures), **run_config),
    )


def _run_in_worker(config: dict[str, Any]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(_CPUS_PER_WORKER)  # more threads than cores slow each other; sums also depend on their number
    try:
        config["run"](config["job"])
    except FloatingPointError as error:
        atomic_write(config["diverged"], str(error).encode())


def _end_with_parent() -> None:
    """End this process soon after its raylet is dead: Ray has given it up then, but may leave it behind."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)


class _Notices:
    """Lines that others append to a file, each shown once; those that are there already have been."""

    def __init__(self, path: Path) -> None:
        self._path, self._shown = path, 0
        self._shown = len(self._lines())

    def show(self) -> None:
        lines = self._lines()
        for line in lines[self._shown :]:
            get_logger("train").warning("%s", line)
        self._shown = len(lines)

    def _lines(self) -> list[str]:
        return self._path.read_text().splitlines() if self._path.exists() else []


def _lost_worker(error: Exception, max_failures: int) -> UserError | None:
    """The message for a person when workers did not fail but died."""
    failures = getattr(error, "worker_failures", {}).items()
    reasons = {rank: getattr(failure, "health_check_failure", None) for rank, failure in failures}
    lost = [(rank, reason) for rank, reason in reasons.items() if reason is not None]
    if not lost:
        return None
    rank, reason = lost[0]
    return UserError(
        f"train: worker {rank} was lost, as happens when memory runs out, and it was so more than --max-failures "
        f"{max_failures} times ({str(reason).strip().splitlines()[0]}); run the same command again: it resumes (the "
        "worker's output is where it ran, in /tmp/ray/session_latest/logs/worker-*.err)"
    )


def _user_error(error: Exception, folder: Path) -> UserError | None:
    """The message for a person among the workers' errors, if there is one: theirs, or of a full disk or GPU."""
    for rank, failure in getattr(error, "worker_failures", {}).items():
        cause = getattr(failure, "_base_exc", failure)  # Ray keeps the worker's exception beside its traceback's text
        if isinstance(cause, UserError):
            return cause
        if isinstance(cause, OSError) and (message := as_user_error(cause, folder.parent)):
            return message
        if isinstance(cause, torch.OutOfMemoryError):
            return UserError(
                f"train: worker {rank} ran out of its GPU's memory ({str(cause).splitlines()[0]}); lower "
                "--train.micro-batch-size or set --train.model.gradient-checkpointing (`viewdiff plan` says what "
                "fits), and run the same command with it: it resumes"
            )
    return None
