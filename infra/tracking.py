"""Records of experiments in MLflow.

Everything here may be repeated: a stage that was killed and runs again finds its run by fingerprint and goes on in it.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import infra.mlflow_settings  # noqa: F401

# isort: split
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from infra.errors import UserError
from infra.mlflow_outage import UNREACHABLE, first_reason, reason_of_outage, short_requests
from infra.mlflow_run import Run
from infra.storage import require_space

FINGERPRINT_TAG, FOLDER_TAG = "viewdiff.fingerprint", "viewdiff.folder"  # of a run: of the stage's result
ARTIFACTS_NAME = "mlartifacts"
SQLITE_PREFIX = "sqlite:///"

_EXPERIMENT = "viewdiff"
_NEW_DATABASE_BYTES = 1_000_000
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # else MLflow's page guesses: a chat agent's
_QUICK_SECONDS, _PATIENT_SECONDS = 5, 30


class Tracking:
    """One experiment in one MLflow store. Cheap to make in every process; nothing global is set."""

    def __init__(self, uri: str) -> None:
        # A new database tells of each of its migrations, a server of what it is asked to wait for.
        for name in ("alembic", "mlflow.store.db.utils", "mlflow.store.model_registry.abstract_store"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # MLflow's own variable, by which those who share a server keep their runs apart.
        self.uri, self.experiment = uri, os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT

    def check(self) -> None:
        """See that the store answers, within seconds. Creates nothing: a new database is made by the first run.

        Raises:
            UserError: it does not.
        """
        try:
            if self.is_new_database():
                require_space(self._database().parent, _NEW_DATABASE_BYTES)
                return
            with short_requests(seconds=_QUICK_SECONDS, retries=1):
                self._client().search_experiments(max_results=1)
        except (*UNREACHABLE, OSError, ImportError) as error:
            raise self._unreachable(first_reason(error)) from error

    @contextmanager
    def answering(self, *, seconds: int = _PATIENT_SECONDS) -> Iterator[None]:
        """For requests of the body that a person waits for: that the store is away is said within a minute, or twice
        `seconds` where an answer may take that long.

        Raises:
            UserError: it is.
        """
        try:
            with short_requests(seconds=seconds, retries=1):
                yield
        except UNREACHABLE as error:
            reason = reason_of_outage(error)
            if reason is None:
                raise
            raise self._unreachable(reason) from error

    def start(self, name: str, *, tags: Mapping[str, str], parent_run_id: str | None = None) -> Run:
        """A run to log into: the one that has the fingerprint of `tags`, and their folder, else a new one. The same
        work in another place is another run.
        """
        experiment_id, client = self._experiment_id(), self._client()
        if FINGERPRINT_TAG in tags:
            wanted = f"tags.`{FINGERPRINT_TAG}` = '{tags[FINGERPRINT_TAG]}'"
            for run in client.search_runs([experiment_id], wanted, order_by=["start_time ASC"]):
                if run.data.tags.get(FOLDER_TAG) == tags.get(FOLDER_TAG):
                    client.update_run(run.info.run_id, status="RUNNING")
                    return Run(id=run.info.run_id, client=client)
        parent = {"mlflow.parentRunId": parent_run_id} if parent_run_id else {}
        run = client.create_run(experiment_id, run_name=name, tags={**tags, **parent})
        return Run(id=run.info.run_id, client=client)

    def resume(self, run_id: str) -> Run:
        """The run of that id, which an earlier stage recorded.

        Raises:
            UserError: this store has no such run.
        """
        client = self._client()
        try:
            client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise UserError(
                f"MLflow at {self.uri} has no run {run_id}, which an earlier stage of this root recorded; name the "
                "store that it used with --tracking-uri, or another --root"
            ) from error
        return Run(id=run_id, client=client)

    def children(self, run_id: str, *, tags: Mapping[str, str], status: str | None = None) -> list[Run]:
        """The runs below a run that have these tags and, if it is given, this status; newest first."""
        client = self._client()
        found = client.search_runs([self._experiment_id()], f"tags.`mlflow.parentRunId` = '{run_id}'")
        return [
            Run(id=run.info.run_id, client=client)
            for run in found
            if status in (None, run.info.status) and all(run.data.tags.get(key) == tags[key] for key in tags)
        ]

    def run_url(self, run_id: str) -> str | None:
        """Address of a run's page when the store is a server, else None."""
        if not self.uri.startswith(("http://", "https://")):
            return None
        return f"{self.uri.rstrip('/')}/#/experiments/{self._experiment_id()}/runs/{run_id}"

    def _unreachable(self, reason: str) -> UserError:
        remedy = "start that server or name another with --tracking-uri (without it a local database is used)"
        return UserError(f"MLflow at {self.uri} cannot be reached ({reason}); {remedy}")

    def _database(self) -> Path:
        return Path(self.uri.removeprefix(SQLITE_PREFIX)).absolute()

    def is_new_database(self) -> bool:
        """Whether the store is a database file that is not there yet.

        One that is there is opened once without MLflow, which tries for 100 s before it says that it cannot.
        """
        if not self.uri.startswith(SQLITE_PREFIX):
            return False
        path = self._database()
        if path.exists():
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("SELECT name FROM sqlite_master").fetchall()
        return not path.exists()

    def _client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def _experiment_id(self) -> str:
        client = self._client()
        found = client.get_experiment_by_name(self.experiment)
        if found is not None:
            return found.experiment_id
        location = None  # a server decides itself where its files go
        if self.uri.startswith(SQLITE_PREFIX):
            location = (self._database().parent / ARTIFACTS_NAME).as_uri()
        return client.create_experiment(self.experiment, artifact_location=location, tags=_EXPERIMENT_TAGS)


def flatten(value: object, prefix: str = "") -> dict[str, object]:
    """Nested dicts as one level with dotted keys, the form that params need; lists become JSON text."""
    if isinstance(value, Mapping):
        pairs = [flatten(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items()]
        return {key: item for pair in pairs for key, item in pair.items()}
    return {prefix: json.dumps(value) if isinstance(value, list | tuple) else value}
