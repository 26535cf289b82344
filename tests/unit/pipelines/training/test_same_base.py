"""A trained model goes on with, and generates with, base models like the one that it was trained on alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from diffusers import DDPMScheduler

from infra.errors import UserError
from model.unet import ViewDiffUNet
from pipelines.generation.generator import SampleGenerator
from pipelines.stages import train
from pipelines.training.job import TrainJob
from pipelines.training.worker import _build_unet
from tests.support.factories import tiny_unet
from tests.support.training_inputs import train_config, write_inputs

EPSILON, VELOCITY = "epsilon", "v_prediction"


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    folders = {f"{role}_dir": item.folder for role, item in write_inputs(tmp_path / "inputs").items()}
    (tmp_path / "work").mkdir()
    return TrainJob(config=train_config(), **folders, initial_dir=None, folder=tmp_path / "work", num_loaders=0)


def predicting(kind: str, base: Path) -> None:
    scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    DDPMScheduler.from_config(scheduler.config, prediction_type=kind).save_pretrained(base / "scheduler")


def trained(job: TrainJob, folder: Path) -> Path:
    """The folder of a model as a training writes it."""
    _build_unet(job, None, latent_size=8).save_pretrained(folder)
    return folder


def without_kind(model: Path) -> None:
    """As models were written before what is predicted was noted."""
    network = ViewDiffUNet.from_pretrained(model)
    network.unet.register_to_config(prediction_type=None)
    network.save_pretrained(model)


@pytest.mark.parametrize(("first", "second"), [(EPSILON, VELOCITY), (VELOCITY, EPSILON)])
def test_noise_and_velocity_are_not_confused(first: str, second: str, job: TrainJob, tmp_path: Path) -> None:
    predicting(first, job.base_dir)
    model = trained(job, tmp_path / "model")
    again = replace(job, initial_dir=model)
    SampleGenerator.load(model, job.base_dir)
    train._check(again)

    predicting(second, job.base_dir)
    with pytest.raises(
        UserError, match=rf"model .*/model was trained to predict {first}, base .* predicts {second}; n"
    ):
        SampleGenerator.load(model, job.base_dir)
    with pytest.raises(UserError, match=rf"--initial .* to predict {first}, the base model predicts {second}; name"):
        train._check(again)

    without_kind(model)
    SampleGenerator.load(model, job.base_dir)
    train._check(again)


def test_training_starts_from_a_model_of_the_same_sizes(job: TrainJob, tmp_path: Path) -> None:
    tiny = ViewDiffUNet(tiny_unet(), job.config.model)
    tiny.save_pretrained(tmp_path / "model")
    with pytest.raises(
        UserError, match=r"train: .*/model: weights of another architecture than the network's: .* inst"
    ):
        train._check(replace(job, initial_dir=tmp_path / "model"))
    other = replace(job, config=train_config(model=replace(job.config.model, rank=3)))
    with pytest.raises(UserError, match=r"--initial names a model of other settings: rank 2 instead of 3; give its"):
        train._check(replace(other, initial_dir=trained(job, tmp_path / "model")))
