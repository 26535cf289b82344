"""Which views sample `position` of a run is made of: a pure function, in constant time, the same in every process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from infra.errors import UserError
from model.chance import distinct, uniform
from preprocessing.shards.reading import SequenceRecord

MAXIMUM_STRIDE = 4  # of the consecutive views of a sample


@dataclass(frozen=True, eq=False)
class ViewChoice:
    """The views of B samples."""

    positions: np.ndarray  # [B] int64, of the samples in the run
    sequences: np.ndarray  # [B] numbers among the order's sequences
    rows: np.ndarray  # [B, V] frames, by row of the index
    captions: np.ndarray  # [B] numbers among the sequence's captions


class ViewOrder:
    """The order of a run's samples. Every len(sequences) positions visit each sequence once, in an order drawn anew
    each time. Half of the samples have random frames, the others frames in their order at a stride of 1 to 4 (the
    paper, section 4: training on random and on consecutive frames).
    """

    def __init__(self, sequences: tuple[SequenceRecord, ...], *, seed: int, num_views: int) -> None:
        """Raises UserError when there is no sequence, or one has fewer frames than `num_views`."""
        if not sequences:
            raise UserError("no sequence to choose views from; preprocess more captures or change the split fractions")
        shortest = min(sequences, key=lambda sequence: len(sequence.rows))
        if len(shortest.rows) < num_views:
            raise UserError(
                f"sequence {shortest.category}/{shortest.sequence} has {len(shortest.rows)} frames, num_views is "
                f"{num_views}; use fewer views or preprocess with a higher minimum_frames"
            )
        self.sequences, self._seed, self._num_views = sequences, seed, num_views
        self._starts = np.array([sequence.rows.start for sequence in sequences])
        self._counts = np.array([len(sequence.rows) for sequence in sequences])
        self._num_captions = np.array([len(sequence.captions) for sequence in sequences])

    def choose(self, positions: np.ndarray) -> ViewChoice:
        """The samples at `positions` [B] ≥ 0."""
        sequences = self._visit(positions)
        counts, views = self._counts[sequences], self._num_views
        chances = uniform("views", self._seed, positions, 4 + views)
        longest = np.minimum(MAXIMUM_STRIDE, (counts - 1) // max(views - 1, 1))
        stride = 1 + (chances[:, 1] * longest).astype(np.int64)
        start = (chances[:, 2] * (counts - stride * (views - 1))).astype(np.int64)
        in_order = start[:, None] + stride[:, None] * np.arange(views)
        picks = np.where(chances[:, :1] < 0.5, distinct(chances[:, 4:], counts), in_order)
        return ViewChoice(
            positions=positions,
            sequences=sequences,
            rows=self._starts[sequences][:, None] + picks,
            captions=(chances[:, 3] * self._num_captions[sequences]).astype(np.int64),
        )

    def _visit(self, positions: np.ndarray) -> np.ndarray:
        """[B] the sequence that each position visits."""
        count = len(self.sequences)
        epochs, places = np.divmod(positions, count)
        visited = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            visited[here] = _order(self._seed, int(epoch), count)[places[here]]
        return visited


@lru_cache(maxsize=8)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of `count` sequences in an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)
