"""Reads batches ahead of the training, in processes of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from multiprocessing.connection import Connection

import torch
from torch.utils.data import DataLoader, Dataset

from infra.errors import UserError
from infra.system.processes import end_with, worker_context
from preprocessing.batches.batches import LoadedBatch, TrainBatches

BATCHES_AHEAD = 2  # per process


class _ByPositions(Dataset[LoadedBatch | UserError]):
    """Indexed by the positions of a whole batch instead of by one number. What a person must mend is returned: raised
    in another process, it would come with the tale of that process.
    """

    def __init__(self, batches: TrainBatches) -> None:
        self._batches = batches

    def __getitem__(self, positions: range) -> LoadedBatch | UserError:
        try:
            return self._batches.load(positions)
        except UserError as error:
            return error


def load_batches(batches: TrainBatches, positions: Iterable[range], *, num_workers: int) -> Iterator[LoadedBatch]:
    """The batches at `positions`, in that order whatever the number of processes; with 0 each is loaded when it is
    asked for. To go on anywhere start with the positions there: nothing before them is read or drawn.
    """
    context = worker_context(__name__)
    watched, _held = context.Pipe(duplex=False)  # the other end is held until this process ends, however it does
    loader = DataLoader(
        _ByPositions(batches),
        sampler=positions,
        batch_size=None,  # an item is a batch already
        collate_fn=_as_is,
        num_workers=num_workers,
        prefetch_factor=BATCHES_AHEAD if num_workers else None,
        multiprocessing_context=context if num_workers else None,
        worker_init_fn=partial(_start, watched),
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _as_is(batch: LoadedBatch | UserError) -> LoadedBatch | UserError:
    return batch


def _start(watched: Connection, worker: int) -> None:
    torch.set_num_threads(1)
    end_with(watched)
