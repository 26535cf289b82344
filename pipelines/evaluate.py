"""Stage evaluate: held-out objects from one given view and from text, through Ray Serve, scored against the truth."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.cluster import ensure_ray
from infra.fingerprint import plain
from infra.log import Progress
from infra.mlflow_run import Run
from infra.storage import atomic_write
from infra.tracking import FINGERPRINT_TAG, FOLDER_TAG, Tracking, flatten
from pipelines.config import EvaluateConfig
from pipelines.evaluation_tasks import EvaluationTask, choose_objects, choose_texts
from pipelines.generator import SampleRequest
from pipelines.lineage import log_shards
from pipelines.pictures import ObjectPictures, grid
from pipelines.runtime import RuntimeConfig
from pipelines.scoring import mean_training_image, score, summarize
from pipelines.serve import ServeConfig, serving
from pipelines.stage import final_dir
from preprocessing.captions import read_sequence_captions
from preprocessing.dataset import FrameIndex, ShardReader

BATCHES_IN_FLIGHT = 3  # one that is being denoised, one that fills meanwhile, one whose pictures are being read


class Answer(Protocol):
    """A result that may not be there yet."""

    def result(self) -> Any:
        """Wait for it."""


class Client(Protocol):
    """What evaluation asks of a served model, see `pipelines.serve.GeneratorClient`."""

    def generate(self, request: SampleRequest) -> Answer: ...

    def reconstruct(self, images: np.ndarray) -> Answer: ...


@dataclass(frozen=True)
class _Pending:
    task: EvaluationTask
    sample: Answer
    reconstructed: Answer | None


def evaluate(config: EvaluateConfig, inputs: Mapping[str, Any], folder: Path, runtime: RuntimeConfig) -> dict[str, Any]:
    """Generate what is not in `folder` yet, score it, write objects.parquet and summary.json, tell MLflow.

    `inputs`: shards, captions, base, checkpoint. Raises UserError when the split holds no object or MLflow does not
    answer.
    """
    tracking = Tracking(runtime.tracking)
    tracking.check()
    shards, checkpoint = inputs["shards"], inputs["checkpoint"]
    index = FrameIndex.open(shards.data).with_captions(read_sequence_captions(inputs["captions"].folder))
    reader = ShardReader(shards.data, index)
    pictures_dir = folder / "pictures"
    pictures_dir.mkdir(exist_ok=True)
    objects, texts = choose_objects(index, config), choose_texts(index, config)
    tasks = [*objects, *texts]
    missing = [task for task in tasks if not task.path(pictures_dir).exists()]
    if missing:
        served = _serve_config(config, inputs, runtime)
        done = len(tasks) - len(missing)
        ensure_ray()
        with (
            serving(served) as client,
            Progress("evaluate", total=len(tasks), unit="objects", done=done) as progress,
        ):
            limit = BATCHES_IN_FLIGHT * served.max_batch_size * served.num_replicas
            generate_objects(missing, client, reader, pictures_dir, progress=progress, max_in_flight=limit)
    columns = score_objects(objects, index, reader, pictures_dir)
    summary = summarize(columns) | {"num_objects": len(objects), "num_text_objects": len(texts)}
    pq.write_table(pa.table(columns), folder / "objects.parquet")
    atomic_write(folder / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    final = final_dir(folder)
    with tracking.answering():
        run = tracking.start(
            "evaluate",
            tags={FINGERPRINT_TAG: final.name, FOLDER_TAG: str(final), "viewdiff.stage": "evaluate"},
            parent_run_id=checkpoint.facts.get("mlflow_run_id"),
        )
        log_shards(run, shards, context="evaluation")
        _record(run, config, tasks, pictures_dir, summary=summary, columns=columns)
    return {"mlflow_run_id": run.id, **summary}


def generate_objects(
    tasks: Sequence[EvaluationTask],
    client: Client,
    reader: ShardReader,
    pictures_dir: Path,
    *,
    progress: Progress,
    max_in_flight: int,
) -> None:
    """Keep requests in flight to the model; write each object's pictures, complete or not at all, when they arrive."""
    waiting: deque[_Pending] = deque()

    def finish_one() -> None:
        pending = waiting.popleft()
        reconstructed = pending.reconstructed.result() if pending.reconstructed else None
        pictures = pending.task.pictures(pending.sample.result(), reader, reconstructed=reconstructed)
        pictures.save(pending.task.path(pictures_dir))
        progress.advance(object="/".join(pending.task.name))

    for task in tasks:
        reconstructed = client.reconstruct(task.truth(reader)) if task.rows else None
        waiting.append(_Pending(task, client.generate(task.request(reader)), reconstructed))
        if len(waiting) >= max_in_flight:
            finish_one()
    while waiting:
        finish_one()


def score_objects(
    tasks: Sequence[EvaluationTask], index: FrameIndex, reader: ShardReader, pictures_dir: Path
) -> dict[str, list[Any]]:
    """Columns of objects.parquet: names, frames, PSNR and SSIM of every method."""
    mean_image = mean_training_image(index, reader)
    rows = []
    for task in tasks:
        category, sequence = task.name
        frames = [int(index.frame_numbers[row]) for row in task.rows]
        names = {"category": category, "sequence": sequence, "known_frame": frames[0], "target_frames": frames[1:]}
        rows.append(names | score(ObjectPictures.load(task.path(pictures_dir)), mean_image))
    return {name: [row[name] for row in rows] for name in rows[0]}


def _serve_config(config: EvaluateConfig, inputs: Mapping[str, Any], runtime: RuntimeConfig) -> ServeConfig:
    """One replica on CPUs, where it uses all cores; one per GPU otherwise."""
    checkpoint = inputs["checkpoint"]
    return ServeConfig(
        name=f"viewdiff-{checkpoint.fingerprint}",
        model_dir=checkpoint.model_dir,
        base_dir=inputs["base"].folder,
        max_batch_size=config.max_batch_size,
        num_replicas=runtime.num_workers if runtime.use_gpu else 1,
        use_gpu=runtime.use_gpu,
    )


def _record(
    run: Run,
    config: EvaluateConfig,
    tasks: Sequence[EvaluationTask],
    pictures_dir: Path,
    *,
    summary: Mapping[str, float],
    columns: Mapping[str, Sequence[Any]],
) -> None:
    run.log_params(flatten(plain(config)))
    run.log_scores(summary)
    run.log_table(columns, "objects")
    for task in tasks:
        run.log_picture(grid(ObjectPictures.load(task.path(pictures_dir))), "--".join(task.name))
    run.finish()
