"""One MLflow run: what can be logged into it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Read when MLflow is imported or first used. This project sends nothing to anybody.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from infra.storage import StoragePath

_MAX_METRICS, _MAX_PARAMS = 1000, 100  # MLflow's limits for one request
_DIGEST_LENGTH = 36  # characters, MLflow's limit
_TABLES_TAG = "mlflow.loggedArtifacts"  # makes MLflow's page show a JSON artifact as a table


@dataclass(frozen=True)
class Run:
    """One MLflow run."""

    id: str
    client: MlflowClient = field(repr=False, compare=False)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Settings, flat. A param that was logged before must have the same value."""
        items = [Param(key, str(value)) for key, value in params.items()]
        for start in range(0, len(items), _MAX_PARAMS):
            self.client.log_batch(self.id, params=items[start : start + _MAX_PARAMS])

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0, model_id: str | None = None) -> None:
        """Numbers of one step in one request; with `model_id` they are the logged model's too."""
        now = int(time.time() * 1000)
        items = [Metric(key, float(value), now, step, model_id=model_id) for key, value in metrics.items()]
        for start in range(0, len(items), _MAX_METRICS):
            self.client.log_batch(self.id, metrics=items[start : start + _MAX_METRICS])

    def log_scores(self, scores: Mapping[str, float], *, model_id: str | None = None) -> None:
        """A result's numbers, once: a stage that was killed on its last metres says them again."""
        missing = {name: value for name, value in scores.items() if self.last_step(name) < 0}
        self.log_metrics(missing, model_id=model_id)

    def last_step(self, metric: str) -> int:
        """Largest step at which `metric` was logged, -1 if never; so that a resumed stage logs no step twice."""
        return max((point.step for point in self.client.get_metric_history(self.id, metric)), default=-1)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Add or change tags."""
        self.client.log_batch(self.id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_picture(self, image: np.ndarray, name: str, *, step: int | None = None) -> None:
        """uint8 [H, W, 3] image; with a step it joins the series `name` that MLflow's page can step through."""
        if step is None:
            self.client.log_image(self.id, image, artifact_file=f"pictures/{name}.png")
        else:
            self.client.log_image(self.id, image, key=name, step=step)

    def log_table(self, columns: Mapping[str, Sequence[object]], name: str) -> None:
        """Columns of equal length as `<name>.json`, shown as a table. Logged again, it is replaced, not appended to."""
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        file = f"{name}.json"
        self.client.log_text(self.id, json.dumps({"columns": list(columns), "data": rows}), file)
        tables = json.loads(self.client.get_run(self.id).data.tags.get(_TABLES_TAG, "[]"))
        if not any(table["path"] == file for table in tables):
            self.set_tags({_TABLES_TAG: json.dumps([*tables, {"path": file, "type": "table"}])})

    def log_text(self, text: str, name: str) -> None:
        """A text as the file `name` among the run's artifacts."""
        self.client.log_text(self.id, text, name)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """A file, below `folder` of the run's artifacts."""
        self.client.log_artifact(self.id, str(path), folder)

    def log_dataset(
        self, *, name: str, digest: str, source: StoragePath, profile: Mapping[str, object], context: str
    ) -> None:
        """A data set as input of this run, once however often it is logged.

        `digest` says what is in the folder `source`, its first 36 characters are kept; `profile` is what MLflow's page
        shows of it, `context` what it serves for, such as "training".
        """
        dataset = Dataset(
            name=name,
            digest=digest[:_DIGEST_LENGTH],
            source_type="local" if isinstance(source, Path) else "s3",
            source=json.dumps({"uri": str(source)}),
            profile=json.dumps(profile),
        )
        self.client.log_inputs(self.id, [DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, context)])])

    def log_model(self, folder: Path, *, name: str, params: Mapping[str, object] | None = None) -> str:
        """The files of a model folder as a logged model of this run; returns its id. Repeated, the finished one's."""
        run = self.client.get_run(self.id).info
        for model in self.client.search_logged_models([run.experiment_id], f"source_run_id = '{self.id}'"):
            if model.name == name and str(model.status) == "READY":
                return model.model_id
        texts = {key: str(value) for key, value in (params or {}).items()}
        model = self.client.create_logged_model(run.experiment_id, name, self.id, params=texts, model_type="viewdiff")
        self.client.log_model_artifacts(model.model_id, str(folder))
        self.client.finalize_logged_model(model.model_id, "READY")
        return model.model_id

    def finish(self, status: str = "FINISHED") -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.id, status)
