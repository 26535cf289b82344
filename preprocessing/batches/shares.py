"""Which samples a training step is made of, and which of them a rank takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A step has the positions [step · batch_size, (step + 1) · batch_size), however many ranks share them.

    Gradients are summed over ranks after every backward pass, so each rank needs the same number of these. A rank whose
    share is too small for that repeats its last micro-batch, which then counts for nothing.
    """

    batch_size: int  # samples per step, over all ranks
    micro_batch_size: int  # samples per forward pass of one rank, at most
    rank: int
    num_ranks: int

    def __post_init__(self) -> None:
        if self.batch_size < self.num_ranks:
            raise ValueError(f"batch_size {self.batch_size} is less than a sample for each of {self.num_ranks} ranks")

    def micro_batches(self, step: int) -> list[range]:
        """This rank's positions of step `step`, counted from 0, in nearly equal parts."""
        first, last = (step * self.batch_size + self._bounds(rank) for rank in (self.rank, self.rank + 1))
        parts = self.num_counted
        cuts = [first + (last - first) * part // parts for part in range(parts + 1)]
        return [range(start, end) for start, end in pairwise(cuts)]

    @property
    def num_micro_batches(self) -> int:
        """Forward passes of every rank in a step."""
        return -(-self._bounds(1) // self.micro_batch_size)  # rank 0 has a largest share

    @property
    def num_counted(self) -> int:
        """Those of this rank that count: the first of `num_micro_batches`."""
        return min(self.num_micro_batches, self._bounds(self.rank + 1) - self._bounds(self.rank))

    def positions(self, steps: range) -> Iterator[range]:
        """This rank's positions of all these steps, a range for each forward pass."""
        return chain.from_iterable(map(self._passes, steps))

    def _passes(self, step: int) -> list[range]:
        parts = self.micro_batches(step)
        return parts + parts[-1:] * (self.num_micro_batches - len(parts))

    def _bounds(self, rank: int) -> int:
        """First sample of a rank's share: the first ranks have one more where it does not come out even."""
        share, rest = divmod(self.batch_size, self.num_ranks)
        return rank * share + min(rank, rest)
