"""A training whose disk is lost goes on from its checkpoint's copy in an object store, which is away for a while."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.storage.files import digest_folder, open_path
from infra.storage.s3 import S3Path
from pipelines.stages.train import COPIES_NAME, _steps_saved
from pipelines.training.job import TrainJob
from pipelines.training.worker import train_in_worker
from tests.distributed.launch import kill_distributed, run_distributed
from tests.integration.test_train import inputs, records
from tests.support.s3_server import BUCKET, S3Server
from tests.support.training_inputs import train_config, write_inputs

CONFIG = train_config(num_steps=24, checkpoint_every_steps=2, preview_every_steps=100)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Server]:
    (tmp_path / "s3").mkdir()
    server = S3Server(tmp_path / "s3")
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
    server.stop()


def train_with_store(job: TrainJob, environment: dict[str, str]) -> None:
    """In a process that may have been prepared before the store was there."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        train_in_worker(job)


def interrupt(server: S3Server, folder: Path) -> None:
    """Stop the store for two seconds when training is under way again."""
    metrics = folder / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 8:
        time.sleep(0.005)
    server.stop()
    time.sleep(2.0)
    server.start()


def test_a_lost_disk(server: S3Server, tmp_path: Path) -> None:
    write_inputs(tmp_path / "inputs")
    folders = {f"{name}_dir": artifact.folder for name, artifact in inputs(tmp_path).items()}
    job = TrainJob(
        config=CONFIG,
        **folders,
        initial_dir=None,
        folder=tmp_path / "work",
        num_loaders=0,
        copies_dir=open_path(f"s3://{BUCKET}/{COPIES_NAME}/fingerprint"),
    )
    copies = job.copies()
    assert copies is not None
    job.folder.mkdir()
    kill_distributed(
        train_with_store, 1, job, server.environment, when=lambda: 4 <= copies.newest_step() < CONFIG.num_steps
    )
    shutil.rmtree(job.folder)
    job.folder.mkdir()
    assert 4 <= _steps_saved(job) < CONFIG.num_steps

    interruption = threading.Thread(target=interrupt, args=(server, job.folder))
    interruption.start()
    run_distributed(train_with_store, 1, job, server.environment)
    interruption.join()
    assert copies.newest_step() == CONFIG.num_steps
    assert isinstance(copies.root, S3Path)
    assert len(list(copies.root.iterdir())) == 1

    peaceful = tmp_path / "peaceful"
    peaceful.mkdir()
    run_distributed(
        train_in_worker, 1, TrainJob(config=CONFIG, **folders, initial_dir=None, folder=peaceful, num_loaders=0)
    )
    assert records(job.folder) == records(peaceful)
    assert digest_folder(job.model_dir) == digest_folder(peaceful / "model")
