"""Three epochs of a training's samples, entered in a ledger by every rank: nothing is lost, nothing comes twice, and
the order is the same however many ranks and processes read it and wherever it is interrupted.
"""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from pipelines.training.loop import Schedule
from preprocessing.batches.batches import LoadedBatch, TrainBatches
from preprocessing.batches.loader import load_batches
from preprocessing.latents.reading import LatentCache
from preprocessing.shards.reading import FrameIndex
from tests.support.training_inputs import RandomImages, open_index, write_inputs

BATCH_SIZE, EPOCHS, NUM_VIEWS = 8, 3, 3
NUM_SEQUENCES = 40
NUM_STEPS = EPOCHS * NUM_SEQUENCES // BATCH_SIZE
Entry = tuple[int, bytes, bytes, bytes]  # position, and what there was: latents, cameras, caption


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> TrainBatches:
    inputs = write_inputs(tmp_path_factory.mktemp("inputs"), splits=("train",) * NUM_SEQUENCES)
    index: FrameIndex = open_index(inputs)
    latents = LatentCache(inputs["latents"].folder)
    return TrainBatches(index, RandomImages(), latents, seed=5, num_views=NUM_VIEWS)  # type: ignore[arg-type]


def entries(batch: LoadedBatch) -> list[Entry]:
    cameras = batch.scene.cameras.world_to_camera
    return [
        (position, frames.numpy().tobytes(), camera.numpy().tobytes(), text.numpy().tobytes())
        for position, frames, camera, text in zip(batch.positions, batch.frames, cameras, batch.text, strict=True)
    ]


def read(batches: TrainBatches, steps: range, *, num_ranks: int, num_workers: int) -> list[Entry]:
    """What all ranks are given in these steps, in the order of the steps."""
    ranks = []
    for rank in range(num_ranks):
        schedule = Schedule(batch_size=BATCH_SIZE, micro_batch_size=2, rank=rank, num_ranks=num_ranks)
        loader = load_batches(batches, schedule.positions(steps), num_workers=num_workers)
        ranks.append([entry for batch in loader for entry in entries(batch)])
    share = BATCH_SIZE // num_ranks
    return [entry for step in range(len(steps)) for rank in ranks for entry in rank[step * share : (step + 1) * share]]


@pytest.fixture(scope="module")
def truth(batches: TrainBatches) -> list[Entry]:
    """One rank, no other processes, no interruption."""
    ledger = read(batches, range(NUM_STEPS), num_ranks=1, num_workers=0)
    assert [position for position, *_ in ledger] == list(range(EPOCHS * NUM_SEQUENCES))
    visits = batches.order.choose(np.arange(EPOCHS * NUM_SEQUENCES)).sequences.reshape(EPOCHS, NUM_SEQUENCES)
    assert all(Counter(epoch.tolist()) == Counter(range(NUM_SEQUENCES)) for epoch in visits)
    assert len({frames for _, frames, *_ in ledger}) > 0.9 * len(ledger)
    return ledger


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_the_ledger_is_the_same(batches: TrainBatches, truth: list[Entry], num_ranks: int, num_workers: int) -> None:
    random = np.random.default_rng([num_ranks, num_workers])
    cuts = [0, *sorted(random.choice(np.arange(1, NUM_STEPS), 3, replace=False).tolist()), NUM_STEPS]
    ledger: list[Entry] = []
    for start, end in itertools.pairwise(cuts):
        ledger += read(batches, range(start, end), num_ranks=num_ranks, num_workers=num_workers)
    assert ledger == truth


def test_the_number_of_ranks_may_change_on_the_way(batches: TrainBatches, truth: list[Entry]) -> None:
    ledger: list[Entry] = []
    for steps, num_ranks in ((range(4), 2), (range(4, 5), 4), (range(5, 11), 1), (range(11, NUM_STEPS), 8)):
        ledger += read(batches, steps, num_ranks=num_ranks, num_workers=0)
    assert ledger == truth
