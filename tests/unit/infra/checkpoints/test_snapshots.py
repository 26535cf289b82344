"""Checkpoints are whole or invisible, and a damaged one is passed over."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.checkpoints import snapshots
from infra.checkpoints.snapshots import MANIFEST_NAME, Snapshot, SnapshotFolder
from infra.errors import UserError
from infra.log import get_logger


def save(folder: SnapshotFolder, step: int) -> Snapshot:
    return folder.save(step, {"model": {"w": torch.full((3,), float(step))}}, {"loss": step / 10})


def newest_step(root: Path) -> int | None:
    snapshot = SnapshotFolder(root).newest()
    return None if snapshot is None else snapshot.step


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    tensors = {"w": torch.arange(6.0).view(2, 3).T, "b": torch.tensor(3, dtype=torch.int64)}
    SnapshotFolder(tmp_path).save(7, {"model": tensors, "optimizer": {}}, {"loss": 0.5})
    found = SnapshotFolder(tmp_path).newest()
    assert found is not None
    assert (found.step, found.facts, found.tensors("optimizer")) == (7, {"loss": 0.5}, {})
    for name, value in tensors.items():
        assert torch.equal(found.tensors("model")[name], value)


def test_nothing_there() -> None:
    assert newest_step(Path("no such folder")) is None


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path)
    names = [save(folder, step).folder.name for step in (100, 20, 999_999, 1_000_000)]
    assert {path.name for path in tmp_path.iterdir()} == set(names[2:])
    assert newest_step(tmp_path) == 1_000_000


def test_the_best_is_kept_too(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path, keep=1)
    for step, loss in ((1, 0.3), (2, 0.1), (3, 0.2), (4, 0.1), (5, 0.4)):
        folder.save(step, {"model": {}}, {"validation_loss": loss})
    assert sorted(step for step, _ in folder._found()) == [2, 5]
    best = folder.best()
    assert best is not None
    assert (best.step, best.facts["validation_loss"]) == (2, 0.1)
    assert newest_step(tmp_path) == 5


def test_an_interrupted_save_stays_invisible_and_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SnapshotFolder(tmp_path)
    save(folder, 1)

    def die(partial: Path, final: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(snapshots, "publish_folder", die)
    with pytest.raises(KeyboardInterrupt):
        save(folder, 2)
    assert len(list(tmp_path.iterdir())) == 2
    assert newest_step(tmp_path) == 1
    folder.claim()
    assert [step for step, _ in folder._found()] == [1]
    assert not list(tmp_path.glob(".partial-*"))


def test_attempts_do_not_write_into_each_other(tmp_path: Path) -> None:
    first, second = SnapshotFolder(tmp_path), SnapshotFolder(tmp_path)
    assert save(first, 3).folder != save(second, 3).folder
    assert newest_step(tmp_path) == 3


def test_whoever_was_replaced_publishes_nothing(tmp_path: Path) -> None:
    first, second = SnapshotFolder(tmp_path), SnapshotFolder(tmp_path)
    first.claim()
    save(first, 10)
    second.claim()
    with pytest.raises(RuntimeError, match="another process has taken this training over"):
        save(first, 20)
    assert newest_step(tmp_path) == 10
    save(second, 15)
    assert newest_step(tmp_path) == 15


@pytest.mark.parametrize("keep", [1, 2])
def test_what_is_saved_after_falling_back_stays(keep: int, tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path, keep=keep)
    for step in (5, 15, 20):
        save(SnapshotFolder(tmp_path, keep=3), step)
    for _, damaged in folder._found()[:2]:
        (damaged / MANIFEST_NAME).unlink()
    assert newest_step(tmp_path) == 5
    save(folder, 10)
    assert [step for step, _ in folder._found()] == [10, 5][:keep]


def test_a_loss_that_is_no_number_is_not_the_best(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path, keep=1)
    for step, loss in ((1, 0.2), (2, float("nan")), (3, 0.3)):
        folder.save(step, {"model": {}}, {"validation_loss": loss})
    best = folder.best()
    assert best is not None
    assert best.step == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "no manifest", "manifest", "other step"])
def test_a_damaged_one_is_named_and_the_one_before_is_used(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = SnapshotFolder(tmp_path)
    save(folder, 1)
    spoiled = save(folder, 2).folder
    weights, manifest = spoiled / "model.safetensors", spoiled / MANIFEST_NAME
    data = weights.read_bytes()
    if damage == "flip":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut":
        weights.write_bytes(data[:-1])
    elif damage == "missing":
        weights.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:-10])
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"step": 5}))
    get_logger("checkpoint")  # its first call turns propagation off
    monkeypatch.setattr(logging.getLogger("viewdiff"), "propagate", True)
    assert newest_step(tmp_path) == 1
    assert spoiled.name in caplog.text
    assert "falling back" in caplog.text


def test_without_a_whole_one_nothing_starts_anew(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path)
    for step in (1, 2):
        (save(folder, step).folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="all 2 checkpoints are damaged; restore one, or remove"):
        folder.newest()


def test_one_that_only_cannot_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SnapshotFolder(tmp_path)
    save(folder, 1)
    unreadable = save(folder, 2).folder
    read_text = Path.read_text

    def fail_once(path: Path, *arguments: Any) -> str:
        if path.parent == unreadable:
            raise OSError(errno.EIO, "Input/output error")
        return read_text(path, *arguments)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_text", fail_once)
        with pytest.raises(UserError, match=r"cannot be read \(Input/output error\) but may be whole"):
            folder.newest()
    assert newest_step(tmp_path) == 2


def test_one_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path)
    save(folder, 1)
    manifest = save(folder, 2).folder / MANIFEST_NAME
    manifest.write_text(json.dumps({"format_version": 2}))
    with pytest.raises(UserError, match="has format version 2, this program reads 1"):
        folder.newest()


def test_the_best_is_whole(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path, keep=3)
    found = [folder.save(step, {"model": {}}, {"validation_loss": loss}) for step, loss in ((1, 0.3), (2, 0.1))]
    (found[1].folder / "model.safetensors").unlink()
    best = folder.best()
    assert best is not None
    assert best.step == 1
