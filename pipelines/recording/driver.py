"""What the driver of a training does while workers train: show progress on the terminal, and see that MLflow gets
everything. The two go on in threads of their own, so that the one never waits for the other's server, and recording
takes no time from a step.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from infra.addresses import shown_address
from infra.errors import UserError
from infra.log import Progress, format_seconds, get_logger
from infra.tracking.outage import UNREACHABLE, first_reason, short_requests
from infra.tracking.run import Run
from pipelines.recording.attempts import Attempt
from pipelines.recording.lines import LineReader, LineSender
from pipelines.recording.recorder import POLL_SECONDS, Recorder
from pipelines.recording.senders import CheckpointSender, PreviewSender, Sender

LOGGED_METRIC = "loss"  # its last step in MLflow tells how far recording got
PATIENCE_SECONDS = 600.0  # after a training: how long MLflow may stay away
HURRY_SECONDS = 30.0  # after one that failed: how long sending may take, if MLflow is there

_REQUEST_SECONDS = 30  # until a request is given up, to be made again
_QUIET_SECONDS = 3.0  # of sending the rest, before anything is said


@dataclass(frozen=True, kw_only=True)
class WatchedFolder:
    """Where workers write what is watched."""

    metrics_path: Path
    previews_dir: Path
    checkpoints_dir: Path


class TrainingWatch:
    """Follows a training for the body of a `with`, and says at its end how it ended.

    Raises:
        UserError: at the end of a training without error, MLflow did not come back, or refuses.
    """

    def __init__(self, watched: WatchedFolder, *, run: Run, attempt: Attempt, total: int, done: int) -> None:
        """`done` of `total` steps are there already."""
        self._run, self._attempt = run, attempt
        self._store = f"MLflow at {shown_address(run.client.tracking_uri)}"
        self._progress = Progress("train", total=total, unit="steps", done=done)
        self._shown = done
        self._reader = LineReader(watched.metrics_path)
        self._metrics = LineSender(watched.metrics_path, run, marker=LOGGED_METRIC)
        self._checkpoints = CheckpointSender(watched.checkpoints_dir, run, attempt.run)
        senders: list[Sender] = [self._metrics, PreviewSender(watched.previews_dir, run), self._checkpoints, attempt]
        self._recorder = Recorder(senders, uri=run.client.tracking_uri)
        self._ended = threading.Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="training-progress")
        self._following: Future[None] | None = None
        self._settings = ExitStack()

    def __enter__(self) -> TrainingWatch:
        # Patience is the recorder's; a client that tries for minutes could not be told to stop.
        self._settings.enter_context(short_requests(seconds=_REQUEST_SECONDS, retries=0))
        self._progress.__enter__()
        self._following = self._executor.submit(self._follow)
        self._recorder.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._settings:
            self._ended.set()
            self._executor.shutdown()
            self._progress.__exit__(kind, error, trace)
            status = "FINISHED" if error is None else "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            self._attempt.note_end(status, step=self._shown, error=None if error is None else str(error) or repr(error))
            self._recorder.end(lambda: self._close(status))
            if error is not None:
                self._hurry()
                return
            self._wait()
            if self._following is not None:
                self._following.result()

    def _close(self, status: str) -> None:
        """The last that is sent."""
        if status == "FINISHED":  # the model is there: nothing goes on from a checkpoint any more
            self._checkpoints.tag_all_removed()
        self._attempt.finish(step=self._shown)
        self._run.finish(status)

    def _follow(self) -> None:
        trouble = ""
        while not self._ended.wait(POLL_SECONDS):
            try:
                self._show()
            except OSError as error:  # of a network file system, say: training may go on, and so does this
                if str(error) != trouble:
                    get_logger("train").warning("progress cannot be shown: %s", error)
                trouble = str(error)
        self._show()

    def _show(self) -> None:
        self._attempt.sample()
        while lines := self._reader.read():
            step = lines[-1]["step"]
            if step != self._shown:  # fewer than shown: workers went back to a checkpoint
                self._progress.advance(step - self._shown, loss=lines[-1]["loss"])
                self._shown = step

    def _hurry(self) -> None:
        """Give the recorder a moment, if it can use it; what is left is the next attempt's."""
        deadline = time.monotonic() + HURRY_SECONDS
        while self._recorder.away is None and time.monotonic() < deadline and not self._recorder.done.wait(0.1):
            pass
        self._recorder.abandon()

    def _wait(self) -> None:
        """Until all is sent."""
        if not self._recorder.done.wait(_QUIET_SECONDS):
            self._show_sending()
        failure = self._recorder.failure
        if isinstance(failure, UNREACHABLE):
            raise UserError(
                f"the training is done, but {self._store} refuses its record "
                f"({first_reason(failure)}); when that is mended run the same command again, it sends the rest"
            ) from failure
        if failure is not None:
            raise failure

    def _show_sending(self) -> None:
        patience, sent = format_seconds(PATIENCE_SECONDS), max(self._metrics.last_sent, 0)
        get_logger("train").info("the training is done; waiting until MLflow has its record, %s at most", patience)
        deadline = time.monotonic() + PATIENCE_SECONDS
        with Progress("record", total=self._shown, unit="steps", done=sent) as progress:
            while not self._recorder.done.wait(POLL_SECONDS):
                if (now_sent := self._metrics.last_sent) > sent:
                    progress.advance(now_sent - sent)
                    sent = now_sent
                if self._recorder.away is None:
                    deadline = time.monotonic() + PATIENCE_SECONDS
                elif time.monotonic() > deadline:
                    self._recorder.abandon()
                    raise UserError(
                        f"the training is done, but {self._store} did not take its record "
                        f"within {patience} ({self._recorder.away}); nothing is lost: run the same "
                        "command again when it is back, it sends the rest"
                    )
