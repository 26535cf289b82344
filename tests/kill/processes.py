"""A driver in a session of its own, and everything of its Ray in it: workers, the raylet, and how all of it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from infra.cluster.connection import CHECKOUT


class Driver:
    """A running Python module. The processes of its Ray are found below it while it lives, and after that by their
    session, which nobody else's process is in.
    """

    def __init__(
        self, module: str, *arguments: Path, is_worker: Callable[[psutil.Process], bool], scratch: Path
    ) -> None:
        """Start it; Ray's own files and what it prints go below `scratch`. `is_worker` tells the processes that do the
        work.
        """
        self._is_worker = is_worker
        self._output = scratch / "output.txt"
        environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "RAY_TMPDIR": str(scratch)}
        environment.pop("RAY_ADDRESS", None)
        with self._output.open("w") as output:
            command = [sys.executable, "-m", module, *map(str, arguments)]
            self._process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._process.poll()

    def said(self) -> str:
        """What it has printed."""
        return self._output.read_text(errors="replace")

    def has_raylet(self) -> bool:
        """Whether Ray's node process is there."""
        return self._raylet() is not None

    def stopped(self, kind: str) -> psutil.Process | None:
        """The driver, the raylet or else a worker. It is stopped, so that it still is in the middle of its work when it
        is killed. None when there is none.
        """
        if kind not in ("driver", "raylet"):
            return next((process for process in self._descendants() if self._stops_working(process)), None)
        process = self._itself() if kind == "driver" else self._raylet()
        if process is None:
            return None
        process.suspend()
        return process if self.exit_code is None else None

    def end(self) -> None:
        """Kill whatever is left of the driver and its Ray, and wait until it is gone."""
        while left := self._session():
            for process in left:
                process.kill()
            psutil.wait_procs(left, timeout=1)
        self._process.wait()

    def _itself(self) -> psutil.Process | None:
        return psutil.Process(self._process.pid) if self.exit_code is None else None

    def _descendants(self) -> list[psutil.Process]:
        itself = self._itself()
        return [] if itself is None else itself.children(recursive=True)

    def _raylet(self) -> psutil.Process | None:
        for process in self._descendants():
            with suppress(psutil.NoSuchProcess):
                if process.name() == "raylet" and process.status() != psutil.STATUS_ZOMBIE:
                    return process
        return None

    def _stops_working(self, process: psutil.Process) -> bool:
        """Stop a process if it is at work, also after it is stopped."""
        if not self._is_worker(process):
            return False
        process.suspend()
        if self._is_worker(process):
            return True
        process.resume()
        return False

    def _session(self) -> list[psutil.Process]:
        found = []
        for number in psutil.pids():
            with suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
                if os.getsid(number) == self._process.pid:
                    process = psutil.Process(number)
                    found += [process] if process.status() != psutil.STATUS_ZOMBIE else []
        return found


def writes_shard(folder: Path, process: psutil.Process) -> bool:
    """Whether a process has a temporary shard of `folder` open."""
    try:
        targets = [link.readlink() for link in Path(f"/proc/{process.pid}/fd").iterdir()]
    except OSError:  # the process or a descriptor is gone
        return False
    return any(path.parent == folder and path.name.startswith(".shard-") for path in targets)


def trains(process: psutil.Process) -> bool:
    """Whether a process is a rank of a training."""
    try:
        return "TrainWorker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
