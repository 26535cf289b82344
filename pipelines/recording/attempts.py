"""The attempts of a training: each call of the command is a child run below the training's own.

The parent holds the curves, which go on from one attempt to the next; a child what belongs to it alone: where it ran,
from which step to which, how it ended and how busy its machine was. An attempt that could not say how it ended is
ended by its successor: as it noted in the training's folder, or as KILLED.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Mapping
from pathlib import Path

from infra.addresses import shown
from infra.log import get_logger
from infra.storage.files import atomic_write
from infra.tracking.experiment import Tracking
from infra.tracking.machine import PREFIX, SystemMetrics
from infra.tracking.run import MOMENT, Run
from infra.tracking.tags import ATTEMPT, ERROR_TAG, FOLDER_TAG, GPUS_TAG, STAGE_TAG
from pipelines.recording.lines import LineSender

ATTEMPTS_NAME = "attempts"  # folder below the training's, needed until all is in MLflow

_MARKER = PREFIX + "cpu_utilization_percentage"
_SAMPLE_SECONDS = 10.0  # between samples of the machine's load, MLflow's own default
_LONGEST_ERROR = 500


class Attempt:
    """One child run, and its files in the training's folder."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run = run
        self._end_path = folder / ATTEMPTS_NAME / f"{run.id}.json"
        self._load_path = folder / ATTEMPTS_NAME / f"{run.id}.jsonl"
        self._load = LineSender(self._load_path, run, marker=_MARKER)
        self._machine: SystemMetrics | None = None
        self._samples, self._next_sample = 0, 0.0
        self._gpus_sent = False

    def sample(self) -> None:
        """Note the machine's load if it is time. Where that cannot be written, as on a full disk, it is said and given
        up: a training is worth more.
        """
        if time.monotonic() < self._next_sample:
            return
        self._next_sample = time.monotonic() + _SAMPLE_SECONDS
        self._machine = self._machine or SystemMetrics(self.run)
        line = {"step": self._samples, MOMENT: round(time.time(), 3), **self._machine.sample()}
        try:
            with self._load_path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            # The file may end with a piece of a line, which readers leave out as long as nothing follows.
            self._next_sample = math.inf
            get_logger("train").warning("the machine's load is recorded no further: %s", error)
        self._samples += 1

    def note_end(self, status: str, *, step: int, error: str | None) -> None:
        """How it ended, on the disk: FINISHED, FAILED or KILLED after `step` steps."""
        end = {"status": status, "step": step, "error": error and shown(error.strip()).splitlines()[0][:_LONGEST_ERROR]}
        atomic_write(self._end_path, json.dumps(end).encode())

    def send(self) -> None:
        """Send the load that was noted since the last time, and once, when Ray is connected, which GPUs it found."""
        self._load.send()
        if not self._gpus_sent:
            self._send_gpus()

    def doubt(self) -> None:
        """As `LineSender.doubt`."""
        self._load.doubt()

    def finish(self, *, step: int) -> None:
        """Send the rest, and how it ended; of one that noted nothing: KILLED after `step` steps. Ray is not asked here:
        the attempt may be an earlier process's, with other GPUs.
        """
        self._load.send()
        if not self._end_path.exists():
            self.note_end("KILLED", step=step, error=None)
        end = json.loads(self._end_path.read_bytes())
        self.run.log_params({"end_step": end["step"]})
        if end["error"]:
            self.run.set_tags({ERROR_TAG: end["error"]})
        self.run.finish(end["status"])

    def _send_gpus(self) -> None:
        from infra.cluster.connection import cluster_gpus  # Ray takes seconds to import

        counts = cluster_gpus()
        if counts:
            self.run.set_tags({GPUS_TAG: ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))})
        self._gpus_sent = counts is not None


def start_attempt(
    tracking: Tracking, parent: Run, folder: Path, *, settings: Mapping[str, object], tags: Mapping[str, str], step: int
) -> Attempt:
    """End the attempts in `folder` that are over without MLflow knowing, and begin the next.

    `settings` say where it runs, `step` how far the one before came. Only to be called by the one process that works in
    `folder`.
    """
    (folder / ATTEMPTS_NAME).mkdir(exist_ok=True)
    mine = {STAGE_TAG: ATTEMPT, FOLDER_TAG: str(folder)}
    siblings = tracking.children(parent.id, tags={STAGE_TAG: ATTEMPT})
    for run in tracking.children(parent.id, tags=mine, status="RUNNING"):
        Attempt(run, folder).finish(step=step)
    run = tracking.start(f"{ATTEMPT} {len(siblings) + 1}", tags={**tags, **mine}, parent_run_id=parent.id)
    run.log_params({"host": platform.node(), **settings})
    return Attempt(run, folder)
