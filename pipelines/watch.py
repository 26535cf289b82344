"""What the driver of a training does while workers train: read their metrics.jsonl and previews, show progress on the
terminal and tell MLflow. So recording takes no time from a step, and one process alone writes to MLflow.
"""

from __future__ import annotations

import json
import os
import re
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from infra.log import Progress, get_logger
from infra.mlflow_run import Run

POLL_SECONDS = 1.0
LOGGED_METRIC = "loss"  # its last step in MLflow tells how far recording got
_PREVIEW_NAME = re.compile(r"step-(\d+)\.png")


class TrainingWatch:
    """Follows a training from a thread of its own for the body of a `with`; its own failure is raised at the end."""

    def __init__(self, metrics_path: Path, previews_dir: Path, *, run: Run, total: int, done: int) -> None:
        """`done` of `total` steps are there already."""
        self._previews_dir, self._run = previews_dir, run
        self._progress = Progress("train", total=total, unit="steps", done=done)
        self._shown = done
        self._logged = run.last_step(LOGGED_METRIC)
        self._drawn = self._logged - 1  # a preview of the very last step may not have been sent
        self._reader = _LineReader(metrics_path)
        self._ended = threading.Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="training-watch")
        self._following: Future[None] | None = None

    def __enter__(self) -> TrainingWatch:
        self._progress.__enter__()
        self._following = self._executor.submit(self._follow)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._executor.shutdown()
        self._progress.__exit__(kind, error, trace)
        if error is None and self._following is not None:
            self._following.result()

    def _follow(self) -> None:
        try:
            while not self._ended.wait(POLL_SECONDS):
                self._poll()
            self._poll()
        except Exception as error:
            get_logger("train").error("recording stopped (%s); training goes on, run the command again after it", error)
            raise

    def _poll(self) -> None:
        records = self._reader.read()
        # Previews first: that of a step is there before the next step's line is, so none is left behind by a kill.
        self._send_previews()
        if records and records[-1]["step"] != self._shown:  # fewer than shown: workers went back to a checkpoint
            self._progress.advance(records[-1]["step"] - self._shown, loss=records[-1]["loss"])
            self._shown = records[-1]["step"]
        for record in records:
            step = record.pop("step")
            if step > self._logged:
                self._run.log_metrics(record, step=step)
                self._logged = step

    def _send_previews(self) -> None:
        if not self._previews_dir.is_dir():
            return
        names = ((_PREVIEW_NAME.fullmatch(path.name), path) for path in self._previews_dir.iterdir())
        for step, path in sorted((int(match[1]), path) for match, path in names if match):
            if step > self._drawn:
                self._run.log_picture(np.asarray(Image.open(path)), "preview", step=step)
                self._drawn = step


class _LineReader:
    """Whole lines that were appended to a file since the last look; from the start again when it was replaced."""

    def __init__(self, path: Path) -> None:
        self._path, self._inode, self._offset = path, -1, 0

    def read(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self._inode:
                self._inode, self._offset = inode, 0
            file.seek(self._offset)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]
