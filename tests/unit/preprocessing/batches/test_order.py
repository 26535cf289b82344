"""Which views a position has, and the random numbers that decide it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from infra.errors import UserError
from model.chance import distinct, uniform
from preprocessing.batches.order import ViewChoice, ViewOrder
from preprocessing.shards.reading import SequenceRecord


def sequences_of(*lengths: int) -> tuple[SequenceRecord, ...]:
    starts = np.cumsum([0, *lengths])
    return tuple(
        SequenceRecord("apple", f"s{i}", "train", ("one", "two"), np.zeros((2, 3)), range(starts[i], starts[i + 1]))
        for i in range(len(lengths))
    )


def choose(lengths: tuple[int, ...], positions: range, *, seed: int = 0, num_views: int = 5) -> ViewChoice:
    return ViewOrder(sequences_of(*lengths), seed=seed, num_views=num_views).choose(np.array(positions))


def test_every_epoch_visits_each_sequence_once() -> None:
    lengths, positions = (12,) * 7, range(35)
    epochs = choose(lengths, positions, seed=3).sequences.reshape(5, 7)
    assert np.array_equal(np.sort(epochs, axis=1), np.tile(np.arange(7), (5, 1)))
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert not np.array_equal(choose(lengths, positions, seed=4).sequences[:7], epochs[0])


def test_a_sample_depends_on_seed_and_position_alone() -> None:
    lengths = (20, 30, 25)
    together = choose(lengths, range(60), seed=1)
    for position in (59, 0, 31):  # alone, and in any order
        alone = choose(lengths, range(position, position + 1), seed=1)
        assert np.array_equal(alone.rows[0], together.rows[position])
        assert (alone.sequences[0], alone.captions[0]) == (together.sequences[position], together.captions[position])
    assert len({tuple(rows) for rows in together.rows}) > 50
    assert set(together.captions) == {0, 1}
    starts = np.array([0, 20, 50])[together.sequences]
    counts = np.array(lengths)[together.sequences]
    assert (together.rows >= starts[:, None]).all()
    assert (together.rows < (starts + counts)[:, None]).all()
    assert all(len(set(rows)) == 5 for rows in together.rows)
    assert (choose(lengths, range(60), seed=2).rows != together.rows).any(axis=1).mean() > 0.9


def test_half_of_the_samples_are_consecutive_at_all_strides() -> None:
    rows = choose((40,), range(2000)).rows
    steps = np.diff(rows, axis=1)
    regular = (steps == steps[:, :1]).all(axis=1) & (steps[:, 0] >= 1) & (steps[:, 0] <= 4)
    # 2000 draws with p = 1/2: a standard deviation of 1.1 %. Random frames in this form are one in millions.
    assert regular.mean() == pytest.approx(0.5, abs=0.05)
    strides = Counter(steps[regular, 0].tolist())
    assert all(strides[stride] > 180 for stride in (1, 2, 3, 4))  # 250 expected, standard deviation 15
    assert set(rows[regular, 0]) == set(range(36))  # stride 1 can begin at 0 to 35


@pytest.mark.parametrize(("frames", "num_views"), [(5, 5), (1, 1), (30, 1), (9, 5)])
def test_short_sequences_bound_the_stride(frames: int, num_views: int) -> None:
    for rows in choose((frames,), range(50), num_views=num_views).rows:
        assert len(set(rows)) == num_views
        assert set(rows) <= set(range(frames))


def test_too_few_frames_name_the_sequence() -> None:
    with pytest.raises(UserError, match=r"sequence apple/s1 has 4 frames, num_views is 5"):
        choose((9, 4), range(1))
    with pytest.raises(UserError, match="no sequence"):
        choose((), range(1))


def test_numbers_are_uniform_and_independent() -> None:
    positions = np.arange(20_000)
    numbers = uniform("views", 7, positions, 3)
    assert numbers.dtype == np.float64
    assert (numbers >= 0).all()
    assert (numbers < 1).all()
    others = [uniform("views", 8, positions, 1), uniform("prior", 7, positions, 1), np.roll(numbers[:, :1], 1, axis=0)]
    columns = np.concatenate([numbers, *others], axis=1)
    # Of 20,000 numbers: a mean's standard error is 0.002, a share of a tenth's 0.002, a correlation's 0.007.
    assert np.abs(columns.mean(axis=0) - 0.5).max() < 0.01
    for column in columns.T:
        assert np.abs(np.histogram(column, bins=10, range=(0, 1))[0] / 20_000 - 0.1).max() < 0.011
    assert np.abs(np.corrcoef(columns.T) - np.eye(6)).max() < 0.035
    assert np.array_equal(uniform("views", 7, positions[500:501], 3)[0], numbers[500])
    assert len(np.unique(uniform("views", 0, np.arange(2**40, 2**40 + 1000), 1))) == 1000


def test_every_ordered_choice_is_equally_likely() -> None:
    count = 60_000
    picks = distinct(uniform("test", 0, np.arange(count), 3), np.full(count, 4))
    found = Counter(map(tuple, picks.tolist()))
    assert len(found) == 24  # 4 · 3 · 2 ordered choices, none with a repetition
    # 2,500 expected of each, standard deviation 49
    assert max(abs(value - 2500) for value in found.values()) < 250
