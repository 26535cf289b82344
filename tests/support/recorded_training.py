"""What a training leaves on the disk, without one; and what MLflow must have of it in the end."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from PIL import Image

from infra.storage.files import atomic_write
from infra.tracking.experiment import Tracking
from infra.tracking.run import Run
from pipelines.recording.attempts import start_attempt
from pipelines.recording.driver import TrainingWatch, WatchedFolder

NUM_STEPS, PREVIEW_STEPS, CHECKPOINT_STEPS = 300, 50, 100


class FakeTraining:
    """Writes what workers write, up to a step, at its own pace."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "previews").mkdir(parents=True)
        self.step = 0

    def go_to(self, last: int, *, pause: float = 0.0) -> None:
        with (self.folder / "metrics.jsonl").open("a") as file:
            for step in range(self.step + 1, last + 1):
                if step % PREVIEW_STEPS == 0:
                    Image.fromarray(np.full((4, 4, 3), step % 256, np.uint8)).save(self.folder / "drawing.png")
                    (self.folder / "drawing.png").rename(self.folder / "previews" / f"step-{step:06d}.png")
                line = {"step": step, "loss": 1 / step, "gradient_norm": 2.0 * step, "time/unix": 1000.0 + step}
                file.write(json.dumps(line) + "\n")
                file.flush()
                if step % CHECKPOINT_STEPS == 0:
                    self.save_checkpoint(step)
                time.sleep(pause)
        self.step = last

    def save_checkpoint(self, step: int) -> Path:
        folder = self.folder / "checkpoints" / f"step-{step:06d}-0123abcd"
        folder.mkdir(parents=True)
        manifest = {"step": step, "files": {"model.safetensors": "0" * 64}, "facts": {"loss": 1 / step}}
        atomic_write(folder / "manifest.json", json.dumps(manifest).encode())
        return folder


def begin_attempt(tracking: Tracking, training: FakeTraining) -> tuple[Run, TrainingWatch]:
    """As the stage does, from where the training stands."""
    run = tracking.start("train", tags={"viewdiff.fingerprint": training.folder.name})
    attempt = start_attempt(
        tracking, run, training.folder, settings={"start_step": training.step}, tags={}, step=training.step
    )
    watched = WatchedFolder(
        metrics_path=training.folder / "metrics.jsonl",
        previews_dir=training.folder / "previews",
        checkpoints_dir=training.folder / "checkpoints",
    )
    return run, TrainingWatch(watched, run=run, attempt=attempt, total=NUM_STEPS, done=training.step)


def assert_all_is_there(run: Run) -> None:
    """Every step, picture and checkpoint, each once."""
    assert run.client.get_run(run.id).info.status == "FINISHED"
    for name, factor, power in (("loss", 1.0, -1), ("gradient_norm", 2.0, 1)):
        points = run.client.get_metric_history(run.id, name)
        history = sorted((point.step, point.value, point.timestamp) for point in points)
        expected = [(step, factor * float(step) ** power, 1000 * (1000 + step)) for step in range(1, NUM_STEPS + 1)]
        assert history == expected
    assert run.picture_steps("preview") == set(range(PREVIEW_STEPS, NUM_STEPS + 1, PREVIEW_STEPS))
    files = [item.path for item in run.client.list_artifacts(run.id, "images") if item.path.endswith(".png")]
    assert len(files) == NUM_STEPS // PREVIEW_STEPS
    models = run.models("checkpoint")
    steps = list(range(CHECKPOINT_STEPS, NUM_STEPS + 1, CHECKPOINT_STEPS))
    assert [int(model.params["step"]) for model in models] == steps
    assert [model.name for model in models] == [f"step-{step:06d}-0123abcd" for step in steps]
    assert [[metric.value for metric in model.metrics] for model in models] == [[1 / step] for step in steps]


def attempts_of(tracking: Tracking, run: Run) -> dict[str, tuple[str, str | None]]:
    """Status and last step of each, by name."""
    found = [run.client.get_run(child.id) for child in tracking.children(run.id, tags={"viewdiff.stage": "attempt"})]
    return {child.info.run_name: (child.info.status, child.data.params.get("end_step")) for child in found}
