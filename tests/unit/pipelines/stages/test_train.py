"""What the driver of a training does before and after workers, whoever was killed when."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.checkpoints.snapshots import SnapshotFolder
from pipelines.spine.artifacts import Artifact
from pipelines.spine.runtime import RuntimeConfig
from pipelines.stages import train as stage
from pipelines.training.job import TrainJob
from tests.support.training_inputs import train_config


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    return TrainJob(
        config=train_config(num_steps=300),
        shards_dir=tmp_path,
        captions_dir=tmp_path,
        latents_dir=tmp_path,
        base_dir=tmp_path,
        initial_dir=None,
        folder=tmp_path / "work",
        num_loaders=0,
    )


def save(writer: SnapshotFolder, step: int, **facts: float) -> None:
    writer.save(step, {"model": {"w": torch.zeros(2)}}, facts)


def test_workers_of_an_earlier_command_publish_nothing_once_the_next_has_looked(job: TrainJob) -> None:
    orphan = job.snapshots()
    orphan.claim()
    save(orphan, 100)
    assert stage._steps_saved(job) == 100
    with pytest.raises(RuntimeError, match="another process has taken this training over"):
        save(orphan, 200)
    assert stage._steps_saved(job) == 100


def test_a_kill_while_checkpoints_are_removed_is_made_good(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one was the best, and its folder was the first to go."""
    job.folder.mkdir()
    (job.folder / "facts.json").write_text('{"steps": 300}')
    save(job.snapshots(), 200, validation_loss=0.3)
    monkeypatch.setattr(stage, "_check", lambda job: None)
    inputs: dict[str, Any] = {name: Artifact(name, job.folder) for name in ("shards", "captions", "latents", "base")}
    runtime = RuntimeConfig(root=str(job.folder.parent))
    assert stage.train(job.config, inputs, job.folder, runtime) == {"steps": 300}
    assert sorted(path.name for path in job.folder.iterdir()) == ["facts.json", "settings.json"]


def test_the_best_weights_are_kept_before_checkpoints_may_go(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    for name in ("_check", "_require_same_settings"):
        monkeypatch.setattr(stage, name, lambda job: None)
    monkeypatch.setattr(stage, "_run", lambda *arguments: order.append("run") or "id")
    monkeypatch.setattr(stage, "_facts", lambda job: order.append("facts") or {})
    monkeypatch.setattr(stage, "_keep_best", lambda job: order.append("best"))
    job.folder.mkdir()
    inputs: dict[str, Any] = {name: Artifact(name, job.folder) for name in ("shards", "captions", "latents", "base")}
    stage.train(job.config, inputs, job.folder, RuntimeConfig(root=str(job.folder.parent)))
    assert order == ["run", "best", "facts"]


def test_a_training_that_is_over_needs_no_checkpoint(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its record was missing, and somebody has made room meanwhile."""
    (job.folder / "model").mkdir(parents=True)
    (job.folder / "model" / "training.json").write_text('{"step": 300}')
    lines = "".join(json.dumps({"step": step}) + "\n" for step in range(1, 301))
    job.metrics_path.write_text(lines)

    def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "_start_run", die)
    tracking = stage.Tracking(f"sqlite:///{job.folder}/mlflow.db")
    with pytest.raises(KeyboardInterrupt):
        stage._run(job, {}, tracking, RuntimeConfig())
    assert job.metrics_path.read_text() == lines
