"""Stage train: the multi-view U-Net, in worker processes that may be killed and started again without a trace.

This runs in the driver; pipelines/training/worker.py in every worker. What lies in the stage's folder decides where
they go on.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel

from infra.cluster.connection import ensure_ray
from infra.cluster.workers import Workers, run_workers
from infra.errors import UserError
from infra.log import get_logger
from infra.provenance.fingerprint import how, identity
from infra.storage.files import atomic_write, require_space
from infra.tracking.experiment import Tracking, flatten
from infra.tracking.run import Run
from infra.tracking.tags import FINGERPRINT_TAG, FOLDER_TAG, RAN_ON_TAG, STAGE_TAG
from model.base.stable_diffusion import prediction_type
from model.pretrained import check_fit
from model.unet import ViewDiffUNet
from pipelines.recording.attempts import ATTEMPTS_NAME, start_attempt
from pipelines.recording.driver import TrainingWatch, WatchedFolder
from pipelines.settings.run import TrainConfig
from pipelines.spine.artifacts import CARD_NAME, RECORD_NAME
from pipelines.spine.lineage import code_tags, input_tags, log_config, log_shards
from pipelines.spine.runtime import RuntimeConfig
from pipelines.spine.stage import final_dir
from pipelines.training.callbacks.average import AVERAGE_PART
from pipelines.training.callbacks.checkpoints import MODEL_PART, write_model
from pipelines.training.callbacks.metrics import drop_lines_after
from pipelines.training.job import TrainJob, open_batches
from pipelines.training.worker import train_in_worker
from preprocessing.latents.reading import LatentCache

COPIES_NAME = "checkpoints"  # folder of all trainings' copies below the place of large data

_FACTS_NAME = "facts.json"
_SETTINGS_NAME = "settings.json"
_MOST_LISTED = 5
# On the disk: weights and AdamW's two moments in a checkpoint; the model, twice while it is replaced, and the best one.
_CHECKPOINT_BYTES, _MODEL_BYTES = 12, 3 * 4
_UNCOUNTED_CHECKPOINTS = 2  # the best one, and one that is being written


def train(config: TrainConfig, inputs: Mapping[str, Any], folder: Path, runtime: RuntimeConfig) -> dict[str, Any]:
    """Train to `config.num_steps` from wherever `folder` stands; leaves model/, metrics.jsonl and previews/ in it.

    `inputs`: shards, captions, latents, base and, for a warm start, initial (a Checkpoint). Raises UserError, before
    any training, when these do not fit the config, or MLflow does not answer.
    """
    tracking = Tracking(runtime.tracking)
    tracking.check()
    initial = inputs.get("initial")
    job = TrainJob(
        config=config,
        shards_dir=inputs["shards"].data,
        captions_dir=inputs["captions"].folder,
        latents_dir=inputs["latents"].data,
        base_dir=inputs["base"].folder,
        initial_dir=None if initial is None else initial.model_dir,
        folder=folder,
        num_loaders=runtime.num_loaders,
        copies_dir=None if runtime.data_root is None else runtime.data_dir / COPIES_NAME / final_dir(folder).name,
    )
    _check(job)
    _require_same_settings(job)
    if not (folder / _FACTS_NAME).exists():
        run_id = _run(job, inputs, tracking, runtime)
        _keep_best(job)  # before the facts: after them checkpoints may be gone
        atomic_write(folder / _FACTS_NAME, json.dumps(_facts(job) | {"mlflow_run_id": run_id}).encode())
    for scratch in (job.checkpoints_dir, job.workers_dir, folder / ATTEMPTS_NAME):
        shutil.rmtree(scratch, ignore_errors=True)  # only needed until all is made and recorded
    job.request_path.unlink(missing_ok=True)
    return json.loads((folder / _FACTS_NAME).read_bytes())


def _check(job: TrainJob) -> None:
    """Everything that could be wrong with the config, in seconds and before workers are started."""
    config = job.config
    open_batches(job)
    LatentCache(job.latents_dir).verify()
    try:
        network = ViewDiffUNet.meta(UNet2DConditionModel.load_config(job.base_dir, subfolder="unet"), config.model)
        if job.initial_dir is not None:
            _check_initial(job, job.initial_dir, network)
    except ValueError as error:
        raise UserError(f"train: {error}") from error
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    each = _CHECKPOINT_BYTES + (4 if config.average_decay else 0)
    num_checkpoints = config.kept_checkpoints + _UNCOUNTED_CHECKPOINTS
    require_space(job.folder, (num_checkpoints * each + _MODEL_BYTES) * num_parameters)


def _check_initial(job: TrainJob, folder: Path, network: ViewDiffUNet) -> None:
    """Raise ValueError when the model in `folder` is no start for `network`."""
    initial = ViewDiffUNet.from_pretrained(folder)
    if changes := _changes(flatten(identity(initial.config)), flatten(identity(job.config.model))):
        raise ValueError(f"{folder}: --initial names a model of other settings: {changes}; give its settings")
    check_fit(folder, network.state_dict(), initial.state_dict())
    predicted, base_predicts = initial.prediction_type, prediction_type(job.base_dir)
    if predicted not in (None, base_predicts):
        raise ValueError(
            f"{folder}: --initial names a model that was trained to predict {predicted}, the base model predicts "
            f"{base_predicts}; name the --base.source that it was trained with"
        )


def _require_same_settings(job: TrainJob) -> None:
    """Note the settings in the folder when a training begins there, and refuse to go on with others.

    A stage's folder is named by its settings, so this happens to folders that were copied or renamed.
    """
    path, settings = job.folder / _SETTINGS_NAME, flatten(identity(job.config))
    if not path.exists():
        _tell_of_unfinished(job, settings)
        atomic_write(path, (json.dumps(settings, indent=2) + "\n").encode())
    elif changes := _changes(json.loads(path.read_bytes()), settings):
        raise UserError(
            f"train: {job.folder} was begun with other settings: {changes}; a training goes on only with those that it "
            "began with: restore them, or use another --root"
        )


def _tell_of_unfinished(job: TrainJob, settings: dict[str, object]) -> None:
    """Say that this is not the continuation of another training, which somebody may have meant."""
    for path in sorted(job.folder.parent.glob(f"*/{_SETTINGS_NAME}")):
        if not (path.parent / RECORD_NAME).exists() and (changes := _changes(json.loads(path.read_bytes()), settings)):
            get_logger("train").info("%s is an unfinished training with other settings: %s", path.parent, changes)


def _changes(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """The settings that differ, with both values."""
    names = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    listed = [f"{name} {before.get(name)} instead of {now.get(name)}" for name in names[:_MOST_LISTED]]
    return ", ".join(listed) + (f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else "")


def _start_run(tracking: Tracking, job: TrainJob, inputs: Mapping[str, Any], name: str | None) -> Run:
    """This training's MLflow run: a new one, or the one that an earlier attempt began."""
    final = final_dir(job.folder)
    tags = {FINGERPRINT_TAG: final.name, FOLDER_TAG: str(final), STAGE_TAG: "train"}
    run = tracking.start(name or f"train {final.name[:8]}", tags=tags)
    run.set_tags({**code_tags("train"), **input_tags(inputs)})
    log_config(run, job.config)
    shards = inputs["shards"]
    log_shards(run, shards, context="training")
    run.log_text((shards.data / CARD_NAME).read_bytes().decode(), CARD_NAME)
    return run


def _run(job: TrainJob, inputs: Mapping[str, Any], tracking: Tracking, runtime: RuntimeConfig) -> str:
    """Do the steps that are missing; returns the id of the MLflow run, which has everything then."""
    done = job.config.num_steps if job.is_over() else _steps_saved(job)
    reached = len(job.metrics_path.read_bytes().splitlines()) if job.metrics_path.exists() else 0
    drop_lines_after(job.metrics_path, done)  # workers do so too; here, so that they are neither shown nor recorded
    settings: dict[str, object] = {"num_workers": runtime.num_workers, "use_gpu": runtime.use_gpu, "start_step": done}
    settings |= flatten(how(job.config))
    with tracking.answering():
        run = _start_run(tracking, job, inputs, runtime.run_name)
        run.set_tags({RAN_ON_TAG: _place(runtime)})
        attempt = start_attempt(tracking, run, job.folder, settings=settings, tags=code_tags("train"), step=reached)
    watched = WatchedFolder(
        metrics_path=job.metrics_path, previews_dir=job.previews_dir, checkpoints_dir=job.checkpoints_dir
    )
    with TrainingWatch(watched, run=run, attempt=attempt, total=job.config.num_steps, done=done):
        if not job.is_over():  # else only the record was missing
            _train_in_workers(job, runtime)
    return run.id


def _steps_saved(job: TrainJob) -> int:
    """Steps done by the checkpoint to go on from; where the training's folder has lost it or it is damaged, its copy is
    brought back. Workers that outlived an earlier command publish no other from here on.
    """
    copies, snapshots = job.copies(), job.snapshots()
    snapshots.claim()
    copied = 0 if copies is None else copies.newest_step()
    try:
        newest = snapshots.newest()
    except UserError:
        if not copied:
            raise
        newest = None
    saved = 0 if newest is None else newest.step
    if copies is None or copied <= saved:
        return saved
    get_logger("train").info("bringing back the checkpoint after step %d from %s", copied, copies.root)
    copies.fetch(snapshots, job.metrics_path)
    newest = snapshots.newest()
    return 0 if newest is None else newest.step


def _place(runtime: RuntimeConfig) -> str:
    """Where a training runs, for a person."""
    kind = "GPU" if runtime.use_gpu else "CPU"
    return f"{runtime.num_workers} worker{'s' if runtime.num_workers > 1 else ''} ({kind}), from {platform.node()}"


def _train_in_workers(job: TrainJob, runtime: RuntimeConfig) -> None:
    ensure_ray(num_cpus=runtime.num_workers)
    workers = Workers(
        most=runtime.num_workers,
        least=runtime.min_workers or runtime.num_workers,
        use_gpu=runtime.use_gpu,
        max_failures=runtime.max_failures,
    )
    run_workers(
        train_in_worker,
        job,
        workers,
        storage_dir=job.workers_dir,
        checkpoint_request=job.request_path,
        notices=job.notices_path,
    )


def _keep_best(job: TrainJob) -> None:
    """Beside the last weights those with the smallest validation loss, if a checkpoint has others."""
    best = job.snapshots().best()
    if best is None or best.step == job.config.num_steps or job.best_dir.exists():
        return
    weights = best.tensors(MODEL_PART) | (best.tensors(AVERAGE_PART) if job.config.average_decay else {})
    write_model(_read_model(job.model_dir), weights, best.step, job.best_dir)


def _read_model(folder: Path) -> ViewDiffUNet:
    """The network that this training wrote. Raises UserError when it cannot be used."""
    try:
        return ViewDiffUNet.from_pretrained(folder)
    except ValueError as error:
        raise UserError(f"train: {error}") from error


def _facts(job: TrainJob) -> dict[str, Any]:
    """What the finished training says of itself."""
    records = [json.loads(line) for line in job.metrics_path.read_text().splitlines()]
    network = _read_model(job.model_dir)
    return {
        "steps": len(records),
        "final_loss": records[-1]["loss"],
        "seconds": round(sum(record["time/seconds"] for record in records), 1),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }
