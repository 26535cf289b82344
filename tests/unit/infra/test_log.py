"""infra/log.py: what a person reads while work is done."""

from __future__ import annotations

import io

import pytest

from infra import log
from infra.log import Progress, format_seconds


class Clock:
    """Stands for time.monotonic."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(log.time, "monotonic", clock)
    return clock


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (42, "42 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_seconds_as_a_person_says_them(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_the_rate_leaves_out_what_comes_before_the_first_unit(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("train", total=100, unit="steps", stream=stream) as progress:
        clock.now += 90  # workers start
        clock.now += 10
        progress.advance()
        clock.now += 10
        progress.advance(10, loss=0.25)
    assert stream.getvalue().splitlines() == [
        "train  starting at 0/100 steps",
        "train  1/100 steps · 0.01 steps/s · at most 2 h 45 min left",
        "train  11/100 steps · 1 steps/s · 1 min 29 s left · loss 0.25",
    ]


def test_what_an_earlier_run_did_counts_as_done_but_not_in_the_rate(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("evaluate", total=10, unit="objects", done=8, stream=stream) as progress:
        clock.now += 4
        progress.advance()
    assert stream.getvalue().splitlines() == [
        "evaluate  resuming at 8/10 objects",
        "evaluate  9/10 objects · 0.25 objects/s · at most 4 s left",
    ]


def test_few_lines_where_every_line_stays(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("synth", total=1000, unit="sequences", stream=stream) as progress:
        for _ in range(1000):
            clock.now += 0.1
            progress.advance()
    assert 20 <= len(stream.getvalue().splitlines()) <= 23  # 100 s, one line in 5 s
    assert stream.getvalue().splitlines()[-1].startswith("synth  1000/1000 sequences")
