"""Checkpoints are written beside the training, with the model folder of the newest one."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from infra.checkpoints.background import Background
from infra.checkpoints.snapshots import Snapshot, SnapshotFolder
from model.base.stand_in import build_tiny_base
from model.unet import ViewDiffUNet
from pipelines.training.callbacks.average import AVERAGE_PART, WeightAverage
from pipelines.training.callbacks.cadence import Cadence
from pipelines.training.callbacks.checkpoints import MODEL_PART, SaveCheckpoints
from pipelines.training.loop import StepInfo
from tests.support.training_inputs import BASE, IMAGE_SIZE, train_config

pytestmark = pytest.mark.usefixtures("one_rank_group")


class Optimizer:
    """Stands for the engine."""

    def optimizer_state(self) -> dict[str, Tensor]:
        return {"moment": torch.ones(2)}


@pytest.fixture
def unet() -> ViewDiffUNet:
    base = build_tiny_base(BASE, image_size=IMAGE_SIZE, words=["apple"], seed=0)
    return ViewDiffUNet(base.unet, train_config().model)


def saver(unet: ViewDiffUNet, folder: Path, average: WeightAverage | None = None) -> SaveCheckpoints:
    return SaveCheckpoints(
        engine=Optimizer(),  # type: ignore[arg-type]
        unet=unet,
        cadence=Cadence(2, 5),
        average=average,
        snapshots=SnapshotFolder(folder / "checkpoints", keep=10),
        model_dir=folder / "model",
        request_path=folder / "request",
    )


def info(step: int, **facts: object) -> StepInfo:
    settings = {"loss": 0.5, "scalars": {}, "gradient_norm": 1.0, "learning_rates": {}, "seconds": 1.0}
    return StepInfo(step=step, **(settings | facts))  # type: ignore[arg-type]


def fill(unet: ViewDiffUNet, value: float) -> None:
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.fill_(value)


def values(tensors: dict[str, Tensor]) -> set[float]:
    return {number for tensor in tensors.values() for number in tensor.unique().tolist()}


def newest(folder: Path) -> Snapshot:
    snapshot = SnapshotFolder(folder / "checkpoints").newest()
    assert snapshot is not None
    return snapshot


def test_what_training_changes_meanwhile_is_not_in_it(unet: ViewDiffUNet, tmp_path: Path) -> None:
    save, may_write = saver(unet, tmp_path), threading.Event()
    save.background.run(may_write.wait)  # a slow disk
    threading.Timer(0.2, may_write.set).start()
    fill(unet, 2.0)
    save(info(2, scalars={"validation_loss": 0.25, "view_loss": 1.0}))
    fill(unet, 3.0)
    save(info(3))  # not due
    save.background.wait()
    assert values(newest(tmp_path).tensors(MODEL_PART)) == {2.0}
    assert newest(tmp_path).facts == {"loss": 0.5, "validation_loss": 0.25}
    assert values(dict(ViewDiffUNet.from_pretrained(tmp_path / "model").named_parameters())) == {2.0}
    assert json.loads((tmp_path / "model" / "training.json").read_bytes()) == {"step": 2}


def test_a_wanted_checkpoint_is_written_once(
    unet: ViewDiffUNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, may_write = saver(unet, tmp_path), threading.Event()
    publish = save.snapshots.save

    def slowly(*arguments: Any, **options: Any) -> Snapshot:
        assert may_write.wait(10)
        return publish(*arguments, **options)

    monkeypatch.setattr(save.snapshots, "save", slowly)
    assert not save.is_wanted()
    (tmp_path / "request").touch()
    assert save.is_wanted()
    save(info(3, checkpoint_wanted=True))
    assert (tmp_path / "request").exists()
    assert not save.is_wanted()
    may_write.set()
    save.background.wait()
    assert newest(tmp_path).step == 3
    assert not (tmp_path / "request").exists()
    (tmp_path / "request").touch()
    assert save.is_wanted()


def test_a_checkpoint_from_before_a_wish_does_not_fulfil_it(unet: ViewDiffUNet, tmp_path: Path) -> None:
    save = saver(unet, tmp_path)
    (tmp_path / "request").touch()
    save(info(2))  # due, and began before anybody asked
    save.background.wait()
    assert (tmp_path / "request").exists()


def test_the_model_is_the_average_and_goes_on_from_a_checkpoint(unet: ViewDiffUNet, tmp_path: Path) -> None:
    """Decay 0 at the first step, then 2/11: the average of 1 and 4 is 4 - 3 · 2/11."""
    average = WeightAverage(unet, 0.9, None)
    save = saver(unet, tmp_path, average)
    for step, value in ((1, 1.0), (2, 4.0)):
        fill(unet, value)
        average(info(step))
    save(info(2))
    save.background.wait()
    found = values(dict(ViewDiffUNet.from_pretrained(tmp_path / "model").named_parameters()))
    assert min(found) == pytest.approx(4 - 3 * 2 / 11)
    assert max(found) == pytest.approx(4 - 3 * 2 / 11)
    assert values(newest(tmp_path).tensors(MODEL_PART)) == {4.0}
    resumed = WeightAverage(unet, 0.9, newest(tmp_path))
    for each in (average, resumed):
        each(info(3))
    assert values(resumed.weights()) == values(average.weights())
    assert newest(tmp_path).tensors(AVERAGE_PART).keys() == dict(unet.named_parameters()).keys()


def test_a_model_that_a_killed_writer_left_out_is_made_up_for(unet: ViewDiffUNet, tmp_path: Path) -> None:
    save = saver(unet, tmp_path)
    fill(unet, 5.0)
    save.finish(5)
    before = (tmp_path / "model" / "model.safetensors").stat().st_ino
    save.finish(5)  # it is there: nothing to do
    assert (tmp_path / "model" / "model.safetensors").stat().st_ino == before
    assert values(dict(ViewDiffUNet.from_pretrained(tmp_path / "model").named_parameters())) == {5.0}


def test_a_failed_write_is_told_by_the_next(tmp_path: Path) -> None:
    background = Background("test")
    background.run((tmp_path / "no folder" / "file").touch)
    with pytest.raises(FileNotFoundError):
        background.run(lambda: None)
    background.wait()  # told once


def test_a_failed_write_is_told_at_the_next_step(unet: ViewDiffUNet, tmp_path: Path) -> None:
    save = saver(unet, tmp_path)
    (tmp_path / "checkpoints").write_text("in the way")
    save(info(2))
    while save.background.is_busy:
        pass
    with pytest.raises(OSError, match="checkpoints"):
        save(info(3))
