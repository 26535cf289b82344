"""One MLflow run: what can be logged into it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import infra.tracking.settings  # noqa: F401

# isort: split
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModel, LoggedModelOutput, Metric, Param, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from infra.addresses import artifact_name
from infra.storage.files import StoragePath
from infra.tracking.tags import FILES_KEPT, FILES_TAG

_MAX_METRICS, _MAX_PARAMS = 1000, 100  # MLflow's limits for one request
_DIGEST_LENGTH = 36  # characters, MLflow's limit
_TABLES_TAG = "mlflow.loggedArtifacts"  # makes MLflow's page show a JSON artifact as a table
MOMENT = "time/unix"  # key of a line: when it was written, in Unix seconds
_MODEL = "model"  # kind of logged models whose files MLflow holds

READY = "READY"  # of a logged model whose record is complete


@dataclass(frozen=True)
class ModelMetrics:
    """Numbers of a logged model, and the run that measured them."""

    run: Run
    step: int
    values: Mapping[str, float]


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

    def params(self) -> dict[str, str]:
        """Those that were logged."""
        return dict(self.client.get_run(self.id).data.params)

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

    def log_lines(self, lines: Sequence[Mapping[str, float]]) -> int:
        """Numbers of many steps in one request: as many of the first lines as it takes, whole; returns how many.

        Each line has its `step` and its MOMENT; everything else in it is a metric.
        """
        items, count = list[Metric](), 0
        for line in lines:
            moment, step = int(line[MOMENT] * 1000), int(line["step"])
            added = [Metric(name, float(line[name]), moment, step) for name in line if name not in ("step", MOMENT)]
            if count and len(items) + len(added) > _MAX_METRICS:
                break
            items, count = items + added, count + 1
        self.client.log_batch(self.id, metrics=items)
        return count

    def last_step(self, metric: str) -> int:
        """Largest step at which `metric` was logged, -1 if never; so that a resumed stage logs no step twice."""
        latest = self.client.get_run(self.id).data.to_proto().metrics  # the history would be megabytes
        return max((int(point.step) for point in latest if point.key == metric), default=-1)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Add or change tags."""
        self.client.log_batch(self.id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_picture(self, image: np.ndarray, name: str, *, step: int | None = None) -> None:
        """uint8 [H, W, 3] image; with a step it joins the series `name` that MLflow's page can step through."""
        if step is None:
            self.client.log_image(self.id, image, artifact_file=f"pictures/{artifact_name(name)}.png")
        else:
            self.client.log_image(self.id, image, key=name, step=step)

    def picture_steps(self, name: str) -> set[int]:
        """Steps of the series `name` that are there whole: of each picture the small copy is sent last."""
        pattern = re.compile(rf"images/{re.escape(name)}\+step\+(\d+)\+.*\+compressed\.\w+")
        matches = (pattern.fullmatch(item.path) for item in self.client.list_artifacts(self.id, "images"))
        return {int(match[1]) for match in matches if match}

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
        """The files of a model folder as a logged model of this run; returns its id. Repeated, the finished one's; one
        that an interrupted call began is completed.
        """
        begun = self._models(f"name = '{name}'")
        for model in begun:
            if str(model.status) == READY:
                return model.model_id
        model_id = begun[0].model_id if begun else self._create_model(name, _MODEL, params or {})
        self.client.log_model_artifacts(model_id, str(folder))
        self._complete(model_id, step=0)
        return model_id

    def log_model_record(
        self,
        record: Mapping[str, object],
        file: str,
        *,
        name: str,
        kind: str,
        params: Mapping[str, object],
        metrics: ModelMetrics,
    ) -> str:
        """A model whose files stay where they are, as a logged model that holds only `record`, as JSON in `file`.

        One that an interrupted call began is known by its name, and completed. It is tagged FILES_KEPT. Returns its id.
        """
        begun = next(iter(self._models(f"name = '{name}'")), None)
        model_id = begun.model_id if begun else self._create_model(name, kind, params)
        with TemporaryDirectory() as folder:
            (Path(folder) / file).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            self.client.log_model_artifacts(model_id, folder)
        if begun is None or not begun.metrics:
            metrics.run.log_metrics(metrics.values, step=metrics.step, model_id=model_id)
        self.client.set_logged_model_tags(model_id, {FILES_TAG: FILES_KEPT})
        self._complete(model_id, step=metrics.step)
        return model_id

    def models(self, kind: str) -> list[LoggedModel]:
        """This run's logged models of that kind which are complete, oldest first."""
        complete = [model for model in self._models(f"model_type = '{kind}'") if str(model.status) == READY]
        return sorted(complete, key=lambda model: model.creation_timestamp)

    def tag_model(self, model_id: str, tags: Mapping[str, str]) -> None:
        """Add or change tags of a logged model."""
        self.client.set_logged_model_tags(model_id, dict(tags))

    def _models(self, condition: str) -> list[LoggedModel]:
        experiment_id = self.client.get_run(self.id).info.experiment_id
        wanted, token, found = f"source_run_id = '{self.id}' AND {condition}", None, list[LoggedModel]()
        while True:  # page by page
            page = self.client.search_logged_models([experiment_id], wanted, page_token=token)
            found, token = [*found, *page], page.token
            if not token:
                return found

    def _complete(self, model_id: str, *, step: int) -> None:
        """Name the model among the run's outputs, which is where MLflow's page looks for it, and call it complete."""
        outputs = self.client.get_run(self.id).outputs
        if outputs is None or model_id not in [output.model_id for output in outputs.model_outputs]:
            self.client.log_outputs(self.id, [LoggedModelOutput(model_id, step)])
        self.client.finalize_logged_model(model_id, READY)

    def _create_model(self, name: str, kind: str, params: Mapping[str, object]) -> str:
        experiment_id = self.client.get_run(self.id).info.experiment_id
        texts = {key: str(value) for key, value in params.items()}
        return self.client.create_logged_model(experiment_id, name, self.id, params=texts, model_type=kind).model_id

    def finish(self, status: str = "FINISHED") -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.id, status)
