"""Records of experiments in MLflow.

Everything here may be repeated: a stage that was killed and runs again finds its run by fingerprint and goes on in it.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import infra.tracking.settings  # noqa: F401

# isort: split
from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage
from mlflow.exceptions import MlflowException

from infra.addresses import require_name, shown_address, sqlite_address, sqlite_path
from infra.errors import UserError
from infra.tracking import database
from infra.tracking.outage import UNREACHABLE, explained, reason_of_outage, require_answer, short_requests
from infra.tracking.run import Run
from infra.tracking.tags import FINGERPRINT_TAG, FOLDER_TAG

_EXPERIMENT, _EXPERIMENT_VARIABLE = "viewdiff", "MLFLOW_EXPERIMENT_NAME"
_SHORT_ADDRESSES = ("databricks", "arn:")  # of hosted stores
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # else MLflow's page guesses: a chat agent's
_QUICK_SECONDS, _PATIENT_SECONDS = 5, 30
_LOG_LEVELS = {
    "alembic": logging.WARNING,  # a new database tells of each of its migrations,
    "mlflow.store.model_registry.abstract_store": logging.WARNING,  # a server of what it is asked to wait for,
    "mlflow.store.db.utils": logging.CRITICAL + 1,  # and a database that is away of its tracebacks
}


class Tracking:
    """One experiment in one MLflow store. Cheap to make in every process; nothing global is set."""

    def __init__(self, uri: str) -> None:
        """`uri`: a server's address, or a database's as SQLAlchemy writes it.

        Raises:
            UserError: it is no address, or MLFLOW_EXPERIMENT_NAME holds no name.
        """
        for name, level in _LOG_LEVELS.items():
            logging.getLogger(name).setLevel(level)
        self._database = _database(uri)
        self.uri = uri if self._database is None else sqlite_address(self._database)
        # MLflow's own variable, by which those who share a server keep their runs apart.
        self.experiment = os.environ.get(_EXPERIMENT_VARIABLE) or _EXPERIMENT
        require_name(_EXPERIMENT_VARIABLE, self.experiment)

    def check(self) -> None:
        """See that the store answers and takes runs, within seconds. Creates nothing: a new database is made by the
        first run.

        Raises:
            UserError: it does not.
        """
        if self._database is not None:
            database.require_usable(self._database)
            if self.is_new_database():
                return
        try:
            with short_requests(seconds=_QUICK_SECONDS, retries=1):
                require_answer(self.uri)
                found = self._client().get_experiment_by_name(self.experiment)
        except (*UNREACHABLE, OSError, ImportError, ValueError) as error:
            raise explained(error, self.uri) from error
        self._require_active(found)

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
            if reason_of_outage(error) is None:
                raise
            raise explained(error, self.uri) from error

    def start(self, name: str, *, tags: Mapping[str, str], parent_run_id: str | None = None) -> Run:
        """A run to log into: the one that has the fingerprint of `tags`, and their folder, else a new one. The same
        work in another place is another run.
        """
        self._prepare()
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
            UserError: this store has no such run, or it was deleted there.
        """
        run = self.find(run_id)
        if run is None:
            raise UserError(
                f"MLflow at {shown_address(self.uri)} has no run {run_id}, which an earlier stage of this root "
                "recorded; name the store that it used with --tracking-uri, or another --root"
            )
        return run

    def find(self, run_id: str) -> Run | None:
        """The run of that id, to go on in; None where this store has no such run.

        Raises:
            UserError: it was deleted there.
        """
        self._prepare()
        client = self._client()
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        if run.info.lifecycle_stage == LifecycleStage.DELETED:
            raise UserError(
                f"run {run_id} was deleted in MLflow at {shown_address(self.uri)}; restore it "
                f"({self._command(f'mlflow runs restore --run-id {run_id}')}) and run the same command again"
            )
        return Run(id=run_id, client=client)

    def _prepare(self) -> None:
        """Before anything is written: a database file is made, or follows its folder."""
        if self._database is not None:
            database.prepare(self._database)

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
        return f"{shown_address(self.uri).rstrip('/')}/#/experiments/{self._experiment_id()}/runs/{run_id}"

    def is_new_database(self) -> bool:
        """Whether the store is a database file in which nothing is yet.

        Raises:
            UserError: something else is in its place.
        """
        return self._database is not None and database.is_new(self._database)

    def _client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def _experiment_id(self) -> str:
        """Of the experiment, which is made if it is not there."""
        client = self._client()
        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            # A server decides itself where its files go.
            location = None if self._database is None else database.artifacts_address(self._database)
            try:
                return client.create_experiment(self.experiment, artifact_location=location, tags=_EXPERIMENT_TAGS)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = client.get_experiment_by_name(self.experiment)  # another process made it just now
        self._require_active(found)
        return str(found.experiment_id)

    def _require_active(self, experiment: Experiment | None) -> None:
        if experiment is not None and experiment.lifecycle_stage == LifecycleStage.DELETED:
            restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
            raise UserError(
                f"experiment {self.experiment!r} was deleted in MLflow at {shown_address(self.uri)}; restore it "
                f"({self._command(restore)}), or name another in {_EXPERIMENT_VARIABLE}"
            )

    def _command(self, command: str) -> str:
        return f"MLFLOW_TRACKING_URI={shlex.quote(shown_address(self.uri))} {command}"


def _database(uri: str) -> Path | None:
    """The file of an SQLite store; None for others.

    Raises:
        UserError: it is no address, or one of no file.
    """
    path = sqlite_path(uri)
    has_no_file = path is None and uri.startswith("sqlite")
    if has_no_file or not ("://" in uri or uri.startswith(_SHORT_ADDRESSES)):
        named = "" if "@" in uri else f" {shown_address(uri)!r}"
        raise UserError(
            f"--tracking-uri{named}: write a server's address as http://host:port, a local database's as "
            f"{sqlite_address(Path('/folder/mlflow.db'))}"
        )
    return path


def flatten(value: object, prefix: str = "") -> dict[str, object]:
    """Nested dicts as one level with dotted keys, the form that params need; lists become JSON text."""
    if isinstance(value, Mapping):
        pairs = [flatten(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items()]
        return {key: item for pair in pairs for key, item in pair.items()}
    return {prefix: json.dumps(value) if isinstance(value, list | tuple) else value}
