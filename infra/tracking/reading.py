"""Training runs as MLflow holds them, for those who compare them. Nothing is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import infra.tracking.settings  # noqa: F401

# isort: split
import numpy as np
from mlflow import MlflowClient

from infra.tracking.experiment import Tracking
from infra.tracking.run import Run
from infra.tracking.tags import FILES_KEPT, FILES_TAG


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """A run's record without its curves."""

    id: str
    name: str
    status: str
    started: datetime
    params: Mapping[str, str]
    tags: Mapping[str, str]
    last: Mapping[str, tuple[int, float]]
    """Step and value of the last point of every metric."""
    datasets: Mapping[str, str]
    """Name and digest of each input data set, by what it served for."""


@dataclass(frozen=True, eq=False)
class History:
    """A metric over the steps, each step once, in their order."""

    steps: np.ndarray  # int64 [N]
    values: np.ndarray  # float64 [N]


class RunReader:
    """The runs of one experiment."""

    def __init__(self, tracking: Tracking) -> None:
        self._tracking = tracking

    @cached_property
    def _client(self) -> MlflowClient:  # not made before it is used: it creates a database that is not there
        return MlflowClient(tracking_uri=self._tracking.uri)

    def runs(self, tags: Mapping[str, str]) -> list[RecordedRun]:
        """Those with these tags, newest first; none where nothing was recorded yet."""
        if self._tracking.is_new_database():
            return []
        experiment = self._client.get_experiment_by_name(self._tracking.experiment)
        if experiment is None:
            return []
        wanted = " AND ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        found: Sequence[Any] = []
        token = None
        while True:  # page by page
            page = self._client.search_runs([experiment.experiment_id], wanted, page_token=token)
            found, token = [*found, *page], page.token
            if not token:
                return [_recorded(run) for run in found]

    def history(self, run: RecordedRun, metric: str) -> History:
        """The whole curve of a metric."""
        points = {point.step: point.value for point in self._client.get_metric_history(run.id, metric)}
        steps = np.array(sorted(points), np.int64)
        return History(steps, np.array([points[step] for step in steps.tolist()], np.float64))

    def newest_kept_model(self, run: RecordedRun, kind: str) -> Mapping[str, str] | None:
        """Params of the run's newest logged model of that kind whose files are on the disk."""
        models = Run(id=run.id, client=self._client).models(kind)
        return next((model.params for model in reversed(models) if model.tags.get(FILES_TAG) == FILES_KEPT), None)


def _recorded(run: Any) -> RecordedRun:
    return RecordedRun(
        id=run.info.run_id,
        name=run.info.run_name,
        status=run.info.status,
        started=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        params=dict(run.data.params),
        tags=dict(run.data.tags),
        last={point.key: (int(point.step), float(point.value)) for point in run.data.to_proto().metrics},
        datasets={
            next((tag.value for tag in used.tags if tag.key == "mlflow.data.context"), "input"): (
                f"{used.dataset.name} {used.dataset.digest}"
            )
            for used in run.inputs.dataset_inputs
        },
    )
