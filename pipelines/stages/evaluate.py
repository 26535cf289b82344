"""Stage evaluate: held-out objects from one given view and from text, through Ray Serve, scored against the truth."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.cluster.connection import ensure_ray
from infra.errors import UserError
from infra.log import Progress, get_logger
from infra.provenance.fingerprint import identity
from infra.storage.files import atomic_write
from infra.tracking.experiment import Tracking, flatten
from infra.tracking.run import Run
from infra.tracking.tags import FINGERPRINT_TAG, FOLDER_TAG
from pipelines.evaluation.generating import Failures, generate_objects, require_few, require_scores
from pipelines.evaluation.objects import choose_objects, choose_texts
from pipelines.evaluation.scoring import OBJECTS_SCHEMA, REASON, SCORE_COLUMNS, mean_training_image, score, summarize
from pipelines.generation.pictures import ObjectPictures, grid
from pipelines.generation.task import EvaluationTask
from pipelines.serving.deployment import ServeConfig, serving
from pipelines.settings.run import EvaluateConfig
from pipelines.spine.lineage import log_shards
from pipelines.spine.runtime import RuntimeConfig
from pipelines.spine.stage import final_dir
from preprocessing.shards.reading import FrameIndex, ShardReader

BATCHES_IN_FLIGHT = 3  # one that is being denoised, one that fills meanwhile, one whose pictures are being read


def evaluate(config: EvaluateConfig, inputs: Mapping[str, Any], folder: Path, runtime: RuntimeConfig) -> dict[str, Any]:
    """Generate what is not in `folder` yet, score it, write objects.parquet and summary.json, tell MLflow.

    `inputs`: shards, captions, base, checkpoint. An object that fails is recorded with the reason, and is in no mean.

    Raises:
        UserError: the split holds no object, all objects failed, or more than `config.max_failed_share` allows, or
            MLflow does not answer.
    """
    tracking = Tracking(runtime.tracking)
    tracking.check()
    shards, checkpoint = inputs["shards"], inputs["checkpoint"]
    index = shards.index(inputs["captions"])
    reader = ShardReader(shards.data, index)
    pictures_dir = folder / "pictures"
    pictures_dir.mkdir(exist_ok=True)
    objects, texts = choose_objects(index, config), choose_texts(index, config)
    tasks = [*objects, *texts]
    most_failures = math.floor(config.max_failed_share * len(tasks) + 1e-9)
    failures = _generate(config, inputs, runtime, tasks, reader=reader, pictures_dir=pictures_dir, most=most_failures)
    columns = score_objects(objects, index, reader, pictures_dir, failures)
    unscored = {task.name: reason for task, reason in zip(objects, columns[REASON], strict=True) if reason is not None}
    failures |= unscored
    require_few(failures, most=most_failures)
    require_scores(unscored, num_objects=len(objects))
    summary = summarize(columns) | {
        "num_objects": len(objects),
        "num_text_objects": len(texts),
        "failed_texts": {"/".join(task.name): failures[task.name] for task in texts if task.name in failures},
    }
    pq.write_table(pa.table(columns, schema=OBJECTS_SCHEMA), folder / "objects.parquet")
    atomic_write(folder / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    final = final_dir(folder)
    with tracking.answering():
        run = tracking.start(
            "evaluate",
            tags={FINGERPRINT_TAG: final.name, FOLDER_TAG: str(final), "viewdiff.stage": "evaluate"},
            parent_run_id=checkpoint.facts.get("mlflow_run_id"),
        )
        log_shards(run, shards, context="evaluation")
        made = [task for task in tasks if task.name not in failures]
        _record(run, config, made, pictures_dir, summary=summary, columns=columns)
    return {"mlflow_run_id": run.id, **summary}


def score_objects(
    tasks: Sequence[EvaluationTask], index: FrameIndex, reader: ShardReader, pictures_dir: Path, failures: Failures
) -> dict[str, list[Any]]:
    """Columns of objects.parquet: names, frames, PSNR and SSIM of every method, or the reason why there are none."""
    mean_image = mean_training_image(index, reader)
    rows = []
    for task in tasks:
        category, sequence = task.name
        frames = [int(index.frame_numbers[row]) for row in task.rows]
        names = {"category": category, "sequence": sequence, "known_frame": frames[0], "target_frames": frames[1:]}
        scores: dict[str, float | None] = dict.fromkeys(SCORE_COLUMNS)
        reason = failures.get(task.name)
        if reason is None:
            try:
                scores |= score(ObjectPictures.load(task.path(pictures_dir)), mean_image)
            except UserError as error:
                reason = str(error)
        rows.append(names | scores | {REASON: reason})
    return {name: [row[name] for row in rows] for name in OBJECTS_SCHEMA.names}


def _is_made(task: EvaluationTask, pictures_dir: Path) -> bool:
    """Whether an earlier evaluation has left the task's pictures, whole."""
    path = task.path(pictures_dir)
    if not path.exists():
        return False
    try:
        ObjectPictures.load(path)
    except UserError as error:
        get_logger("evaluate").warning("%s is made again: %s", "/".join(task.name), error)
        return False
    return True


def _generate(
    config: EvaluateConfig,
    inputs: Mapping[str, Any],
    runtime: RuntimeConfig,
    tasks: Sequence[EvaluationTask],
    *,
    reader: ShardReader,
    pictures_dir: Path,
    most: int,
) -> Failures:
    """Make the pictures that are not there yet. Raises UserError when more than `most` objects fail."""
    missing = [task for task in tasks if not _is_made(task, pictures_dir)]
    if not missing:
        return {}
    ensure_ray()
    served = _serve_config(config, inputs, runtime)
    done = len(tasks) - len(missing)
    with serving(served) as client, Progress("evaluate", total=len(tasks), unit="objects", done=done) as progress:
        return generate_objects(
            missing,
            client,
            reader,
            pictures_dir,
            progress=progress,
            max_in_flight=BATCHES_IN_FLIGHT * served.max_batch_size * served.num_replicas,
            most_failures=most,
        )


def _serve_config(config: EvaluateConfig, inputs: Mapping[str, Any], runtime: RuntimeConfig) -> ServeConfig:
    """One replica on CPUs, where it uses all cores; one per GPU otherwise."""
    checkpoint = inputs["checkpoint"]
    return ServeConfig(
        model=checkpoint.fingerprint,
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
    summary: Mapping[str, Any],
    columns: Mapping[str, Sequence[Any]],
) -> None:
    """Tell MLflow, which keeps a run's params for good: what may change before the stage is done is none."""
    run.log_params(flatten(identity(config)))
    run.log_scores({name: value for name, value in summary.items() if not isinstance(value, dict)})
    run.log_table(columns, "objects")
    for task in tasks:
        run.log_picture(grid(ObjectPictures.load(task.path(pictures_dir))), "--".join(task.name))
    run.finish()
