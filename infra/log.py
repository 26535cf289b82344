"""What a person sees of long work: one line per stage with rate and time left."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import TextIO

from infra.addresses import shown

SECONDS_BETWEEN_LINES = 5.0  # on a pipe or in a job's log every line stays, so there are few of them


class _Formatter(logging.Formatter):
    """Hides what is secret in addresses."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


def get_logger(name: str) -> logging.Logger:
    """A logger that writes `stage: message` to standard error once, however often it is asked for."""
    logger = logging.getLogger(f"viewdiff.{name}")
    root = logging.getLogger("viewdiff")
    if not root.handlers:
        handler = logging.StreamHandler()
        clear = "\x1b[2K" if sys.stderr.isatty() else ""  # a line of progress may be there
        handler.setFormatter(_Formatter(f"{clear}%(name)s: %(message)s"))
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        root.propagate = False
    return logger


def format_count(number: int, what: str) -> str:
    """A number of things: 1 frame, 1,200 frames."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def format_seconds(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


class Progress:
    """Progress of one stage: `train  120/600 steps · 2.4 steps/s · 3 min 20 s left · loss 0.31`.

    On a terminal the line is rewritten in place; elsewhere a line is written at most every 5 seconds. `done` is the
    number already done by an earlier, interrupted run: it counts in done/total, not in the rate.
    """

    def __init__(self, stage: str, *, total: int, unit: str, done: int = 0, stream: TextIO | None = None) -> None:
        self._stage, self._total, self._unit = stage, total, unit
        self._done, self._resumed = done, done
        self._stream = stream or sys.stderr
        self._started = time.monotonic()
        self._first: tuple[float, int] | None = None  # when the first units were done, and how many there were then
        self._last_line = float("-inf")

    def __enter__(self) -> Progress:
        what = "resuming at" if self._resumed else "starting at"
        self._write(f"{self._stage}  {what} {self._resumed}/{self._total} {self._unit}", end="\n")
        return self

    def advance(self, n: int = 1, **facts: object) -> None:
        """Count `n` more units as done; `facts` (a loss, a name) are shown behind the numbers."""
        self._done += n
        now = time.monotonic()
        self._first = self._first or (now, self._done)
        interval = 0.1 if self._stream.isatty() else SECONDS_BETWEEN_LINES
        if now - self._last_line >= interval or self._done >= self._total:
            self._last_line = now
            self._write(self._line(facts), end="\r" if self._stream.isatty() else "\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream.isatty():
            self._write("", end="\n")

    def _line(self, facts: dict[str, object]) -> str:
        rate, is_least = self._rate()
        left = format_seconds((self._total - self._done) / rate) if rate > 0 else "?"
        parts = [
            f"{self._stage}  {self._done}/{self._total} {self._unit}",
            f"{rate:.3g} {self._unit}/s",
            f"{'at most ' if is_least else ''}{left} left",
        ]
        parts += [
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in facts.items()
        ]
        return " · ".join(parts)

    def _rate(self) -> tuple[float, bool]:
        """Units per second, and whether that is the least it may be: what comes before the first ones, as the start of
        workers, counts as long as there are no others.
        """
        is_least = self._first is None or self._done <= self._first[1]
        since, done = (self._started, self._resumed) if self._first is None or is_least else self._first
        rate = (self._done - done) / max(time.monotonic() - since, 1e-6)
        return rate, is_least and self._done < self._total

    def _write(self, line: str, *, end: str) -> None:
        clear = "\x1b[2K" if self._stream.isatty() else ""
        self._stream.write(clear + line + end)
        self._stream.flush()
