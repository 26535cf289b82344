"""Copies of checkpoints count when they are whole, and whoever copies them holds nobody up."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from infra.checkpoints.copies import CheckpointCopies
from infra.checkpoints.snapshots import MANIFEST_NAME, Snapshot, SnapshotFolder
from infra.errors import UserError
from pipelines.training.callbacks.checkpoints import Copier

METRICS = "metrics.jsonl"


def save(folder: Path, step: int) -> Snapshot:
    """A checkpoint below `folder`, and the lines that belong to it."""
    (folder / METRICS).write_text("line\n" * step)
    return SnapshotFolder(folder / "checkpoints").save(step, {"model": {"w": torch.full((3,), float(step))}}, {})


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """Folder of a training."""
    (tmp_path / "first").mkdir()
    return tmp_path / "first"


@pytest.fixture
def copies(tmp_path: Path) -> CheckpointCopies:
    return CheckpointCopies(tmp_path / "copies")


def fetched(copies: CheckpointCopies, folder: Path) -> Snapshot | None:
    folder.mkdir()
    snapshots = SnapshotFolder(folder / "checkpoints")
    copies.fetch(snapshots, folder / METRICS)
    return snapshots.newest()


def test_the_newest_comes_back(first: Path, copies: CheckpointCopies, tmp_path: Path) -> None:
    assert copies.newest_step() == 0
    for step in (10, 1_000_000):
        copies.put(save(first, step).folder, first / METRICS)
        assert copies.newest_step() == step
    assert len(list((tmp_path / "copies").iterdir())) == 1
    snapshot = fetched(copies, tmp_path / "second")
    assert snapshot is not None
    assert snapshot.step == 1_000_000
    assert torch.equal(snapshot.tensors("model")["w"], torch.full((3,), 1e6))
    assert {path.name for path in snapshot.folder.iterdir()} == {MANIFEST_NAME, "model.safetensors"}
    assert (tmp_path / "second" / METRICS).read_bytes() == (first / METRICS).read_bytes()


def test_half_a_copy_is_none(
    first: Path, copies: CheckpointCopies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies.put(save(first, 1).folder, first / METRICS)
    newer = save(first, 2).folder
    (newer / MANIFEST_NAME).rename(newer / "aside")  # the writer ends before its last file
    with pytest.raises(FileNotFoundError):
        copies.put(newer, first / METRICS)
    assert copies.newest_step() == 1
    (newer / "aside").rename(newer / MANIFEST_NAME)
    copies.put(newer, first / METRICS)
    assert copies.newest_step() == 2
    assert [path.name for path in (tmp_path / "copies").iterdir()] == [newer.name]


def test_a_damaged_copy_is_none(first: Path, copies: CheckpointCopies, tmp_path: Path) -> None:
    snapshot = save(first, 1)
    copies.put(snapshot.folder, first / METRICS)
    (tmp_path / "copies" / snapshot.folder.name / "model.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match="all 1 checkpoints are damaged"):
        fetched(copies, tmp_path / "second")


def test_a_damaged_checkpoint_is_replaced_by_its_copy(first: Path, copies: CheckpointCopies) -> None:
    snapshot = save(first, 1)
    copies.put(snapshot.folder, first / METRICS)
    (snapshot.folder / "model.safetensors").write_bytes(b"other")
    snapshots = SnapshotFolder(first / "checkpoints")
    with pytest.raises(UserError, match="all 1 checkpoints are damaged"):
        snapshots.newest()
    copies.fetch(snapshots, first / METRICS)
    assert snapshots.newest() == snapshot


def test_a_late_writer_leaves_its_successors_copy(first: Path, copies: CheckpointCopies) -> None:
    early, late = save(first, 1), save(first, 2)
    copies.put(late.folder, first / METRICS)
    copies.put(early.folder, first / METRICS)
    assert copies.newest_step() == 2


class Place(CheckpointCopies):
    """Slow, until it is let go."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.go = threading.Event()
        self.steps: list[int] = []

    def put(self, checkpoint: Path, beside: Path) -> None:
        assert self.go.wait(10)
        super().put(checkpoint, beside)
        self.steps.append(self.newest_step())


def test_a_slow_place_is_not_waited_for(first: Path, tmp_path: Path) -> None:
    place, said = Place(tmp_path / "copies"), list[str]()
    copier = Copier(place, first / METRICS, said.append)
    snapshots = SnapshotFolder(first / "checkpoints", keep=1)
    (first / METRICS).touch()
    for step in (1, 2, 3):
        newest = snapshots.save(step, {"model": {}}, {}, in_use=copier.in_use)
        copier.offer(newest)
    assert [step for step, _ in snapshots._found()] == [3, 1]  # which is being copied
    place.go.set()
    copier.finish(newest)
    assert (place.steps, said) == ([1, 3], [])
    copier.finish(newest)  # is there already
    assert place.steps == [1, 3]


def test_a_place_that_refuses_is_named(first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies, said = CheckpointCopies(tmp_path / "copies"), list[str]()
    copier = Copier(copies, first / METRICS, said.append)

    def refuse(*arguments: object) -> None:
        raise UserError("no bucket")

    with monkeypatch.context() as patch:
        patch.setattr(copies, "put", refuse)
        copier.offer(save(first, 7))
        copier._background.wait()
    assert said == [f"the checkpoint after step 7 has no copy at {tmp_path / 'copies'}: no bucket"]
    copier.finish(save(first, 8))
    assert (copies.newest_step(), len(said)) == (8, 1)
