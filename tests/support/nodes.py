"""A cluster of several nodes on this machine, and drivers of workers on it in processes of their own.

Such a driver is `python -m tests.support.nodes WHAT ROOT FOLDER MOST LEAST`, on the cluster at RAY_ADDRESS if that is
set, else on a Ray of its own. Exit codes as the command line's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

import infra.cluster.workers
from infra.cluster.connection import CHECKOUT, ensure_ray
from infra.cluster.workers import Workers, run_workers
from infra.console import run_command
from infra.storage.files import atomic_write
from tests.distributed.launch import TIMEOUT_SECONDS
from tests.kill.processes import trains
from tests.support.training_inputs import train_config

CONFIG = train_config(num_steps=40, checkpoint_every_steps=5, preview_every_steps=100)
REQUEST_NAME = "checkpoint-requested"


def wait_for(condition: Callable[[], Any], what: Callable[[], str]) -> Any:
    """The first result of `condition()` that is true."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(what())
        time.sleep(0.005)
    return result


def workers_below(process: psutil.Process) -> list[psutil.Process]:
    """Ray Train's workers among a process's descendants, a raylet's or a driver's."""
    return [child for child in process.children(recursive=True) if trains(child)]


class Driver:
    """Training or counting, in a process of its own for the body of a `with`."""

    def __init__(self, what: str, root: Path, folder: Path, *, most: int, least: int, address: str | None) -> None:
        """`address` of the cluster to use."""
        folder.mkdir(exist_ok=True)
        self._output = folder.with_suffix(".txt")
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        # As quick to see that there are too few nodes as Ray lets it be.
        environment |= {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "2"} | ({"RAY_ADDRESS": address} if address else {})
        command = [sys.executable, "-m", "tests.support.nodes", what, str(root), str(folder), str(most), str(least)]
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                command, cwd=CHECKOUT, env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    def said(self) -> str:
        """What it has printed."""
        return self._output.read_text()

    def wait_until(self, condition: Callable[[], Any]) -> Any:
        """Wait for `condition()` while it runs."""

        def holds() -> Any:
            assert self.process.poll() is None, self.said()
            return condition()

        return wait_for(holds, self.said)

    def wait(self) -> int:
        """Its exit code."""
        wait_for(lambda: self.process.poll() is not None, self.said)
        return self.process.returncode

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()


def count_in_worker(folder: Path) -> None:
    """Count until `<folder>/stop` is there. What was done is saved only when somebody asks for it.

    Writes a line [number, ranks] for each number into `<folder>/counted`.
    """
    saved = folder / "saved"
    number = torch.tensor([int(saved.read_text()) if saved.exists() else 0, 0])
    while not number[1]:
        number[0] += 1
        number[1] = (folder / "stop").exists()
        dist.all_reduce(number, dist.ReduceOp.MAX)
        if dist.get_rank() == 0:
            with (folder / "counted").open("a") as file:
                file.write(json.dumps([int(number[0]), dist.get_world_size()]) + "\n")
            if (folder / REQUEST_NAME).exists():
                atomic_write(saved, str(int(number[0])).encode())
                (folder / REQUEST_NAME).unlink()
        time.sleep(0.02)


def counted(folder: Path) -> list[list[int]]:
    """What `count_in_worker` wrote: [number, ranks] each."""
    path = folder / "counted"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def main() -> None:
    """Train or count."""
    what, root, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    most, least = int(sys.argv[4]), int(sys.argv[5])
    infra.cluster.workers._SECONDS_BETWEEN_RESIZES = 1.0
    call = partial(_train, root) if what == "train" else _count
    run_command("driver", lambda: call(folder, most=most, least=least))


def _count(folder: Path, *, most: int, least: int) -> None:
    ensure_ray(num_cpus=most)
    run_workers(
        count_in_worker,
        folder,
        Workers(most=most, least=least, use_gpu=False, max_failures=3),
        storage_dir=folder / "workers",
        checkpoint_request=folder / REQUEST_NAME,
        notices=folder / "workers" / "notices.log",
    )


def _train(root: Path, folder: Path, *, most: int, least: int) -> None:
    from pipelines.spine.runtime import RuntimeConfig
    from pipelines.stages.train import train
    from tests.integration.test_train import inputs

    train(CONFIG, inputs(root), folder, RuntimeConfig(root=str(root), num_workers=most, min_workers=least))


if __name__ == "__main__":
    main()
