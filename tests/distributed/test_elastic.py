"""Another number of ranks after every interruption: the same global batches, so the same losses."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from infra.engine.config import EngineConfig
from infra.engine.learning_rates import learning_rate
from pipelines.training.job import TrainJob
from pipelines.training.worker import train_in_worker
from tests.distributed.launch import TIMEOUT_SECONDS, kill_distributed, run_distributed
from tests.support.training_inputs import train_config, write_inputs

pytestmark = pytest.mark.timeout(3 * TIMEOUT_SECONDS)

NUM_STEPS = 12
ENGINE = EngineConfig(
    learning_rate=1e-4, renderer_learning_rate=1e-3, gradient_clip=1.0, warmup_steps=4, final_rate_share=0.1
)
# Every sample is computed alone, so that only the order of sums over samples differs: roundings of float32, 6e-8 each.
TOLERANCE = 2e-7


def has_lines(path: Path, count: int) -> bool:
    return path.exists() and path.read_bytes().count(b"\n") >= count


def records(job: TrainJob) -> list[dict[str, Any]]:
    return [json.loads(line) for line in job.metrics_path.read_text().splitlines()]


def test_ranks_come_and_go(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "inputs")
    folders = {f"{name}_dir": artifact.folder for name, artifact in inputs.items()}
    config = train_config(
        num_steps=NUM_STEPS,
        batch_size=6,
        micro_batch_size=1,
        engine=ENGINE,
        checkpoint_every_steps=3,
        preview_every_steps=100,
    )
    jobs = []
    for name in ("quiet", "elastic"):
        (tmp_path / name).mkdir()
        jobs.append(TrainJob(config=config, **folders, initial_dir=None, folder=tmp_path / name, num_loaders=0))
    quiet, elastic = jobs
    run_distributed(train_in_worker, 2, quiet)
    for num_ranks, until in ((2, 4), (1, 7), (3, 10)):
        kill_distributed(train_in_worker, num_ranks, elastic, when=partial(has_lines, elastic.metrics_path, until))
    run_distributed(train_in_worker, 2, elastic)
    for expected, found in zip(records(quiet), records(elastic), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=TOLERANCE)
        assert found["view_loss"] == pytest.approx(expected["view_loss"], rel=TOLERANCE)
        for group in ("unet", "renderer"):
            rate = learning_rate(ENGINE, group, found["step"] - 1, num_steps=NUM_STEPS)
            assert found[f"learning_rate_{group}"] == rate
