"""Which rank holds the others up."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from pipelines.training.loop import StepInfo

_STEPS_TO_JUDGE, _SLOW = 20, 1.5  # steps, and times as long as the median rank


class WatchRanks:
    """Says which rank holds the others up, once for each. Only for rank 0.

    Time that a rank spends for itself, without waiting for others, is averaged over about `_STEPS_TO_JUDGE` steps.
    """

    def __init__(self, hosts: Sequence[str], tell: Callable[[str], None]) -> None:
        """`hosts`: each rank's machine."""
        self._hosts, self._tell = hosts, tell
        self._seconds, self._num_steps, self._told = [0.0] * len(hosts), 0, set[int]()

    def __call__(self, info: StepInfo) -> None:
        if len(info.rank_seconds) != len(self._hosts) or min(info.rank_seconds) <= 0:
            return
        self._num_steps += 1
        share = 1 / min(self._num_steps, _STEPS_TO_JUDGE)
        pairs = zip(self._seconds, info.rank_seconds, strict=True)
        self._seconds = [old + share * (new - old) for old, new in pairs]
        usual = statistics.median_low(self._seconds)
        for rank, seconds in enumerate(self._seconds):
            if self._num_steps >= _STEPS_TO_JUDGE and seconds > _SLOW * usual and rank not in self._told:
                self._told.add(rank)
                self._tell(
                    f"step {info.step}: rank {rank} on {self._hosts[rank]} takes {seconds:.3g} s for its own part of a "
                    f"step, the others {usual:.3g} s; all wait for it"
                )
