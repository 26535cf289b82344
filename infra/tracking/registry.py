"""MLflow's model registry: the versions of one registered model, their tags and their aliases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import infra.tracking.settings  # noqa: F401

# isort: split
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from infra.tracking.experiment import Tracking
from infra.tracking.tags import CHAMPION

_PAGE = 1000  # versions in one answer


@dataclass(frozen=True)
class RegisteredVersion:
    """A version in the model registry."""

    name: str
    version: int
    tags: Mapping[str, str]


class Registry:
    """One registered model in one MLflow store. Cheap to make in every process; nothing global is set.

    Every method raises UserError when the store does not answer within a minute.
    """

    def __init__(self, uri: str, name: str) -> None:
        self.tracking, self.name = Tracking(uri), name

    def versions(self) -> list[RegisteredVersion]:
        """All versions, oldest first."""
        if self.tracking.is_new_database():
            return []
        found, token = list[RegisteredVersion](), None
        with self._client() as client:
            while True:
                page = client.search_model_versions(f"name = '{self.name}'", max_results=_PAGE, page_token=token)
                found, token = [*found, *map(_registered, page)], page.token
                if not token:
                    return sorted(found, key=lambda version: version.version)

    def aliases(self) -> dict[str, int]:
        """The version that each alias points at."""
        if self.tracking.is_new_database():
            return {}
        with self._client() as client:
            try:
                model = client.get_registered_model(self.name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return {}
        return {alias: int(version) for alias, version in model.aliases.items()}

    def champion(self) -> RegisteredVersion | None:
        """The version in use, if any."""
        number = self.aliases().get(CHAMPION)
        if number is None:
            return None
        with self._client() as client:
            return _registered(client.get_model_version(self.name, str(number)))

    def add(self, *, model_id: str, run_id: str, tags: Mapping[str, str]) -> RegisteredVersion:
        """A new version from a logged model; it appears with its tags or not at all."""
        with self._client() as client:
            try:
                client.create_registered_model(self.name)
            except MlflowException as error:  # as a rule it is there, or another process was first
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            # The files' own address: MLflow looks a models:/ address up in the process's default store, not in this.
            source = client.get_logged_model(model_id).artifact_location
            created = client.create_model_version(self.name, source, run_id=run_id, model_id=model_id, tags=dict(tags))
        return _registered(created)

    def set_alias(self, alias: str, version: int) -> bool:
        """Point `alias` at a version; it leaves the one that had it. MLflow has no compare-and-set: whoever must not
        take the alias from a third version reads it right before, and again afterwards.

        False, and nothing is changed, if there was no such alias and another process made it at the same moment.
        """
        with self._client() as client:
            try:
                client.set_registered_model_alias(self.name, alias, str(version))
            except MlflowException as error:  # MLflow looks whether there is one, then inserts
                if "IntegrityError" not in str(error) and "UniqueViolation" not in str(error):
                    raise
                return False
        return True

    def set_tag(self, version: int, key: str, value: str) -> None:
        """Add or change one tag of a version."""
        with self._client() as client:
            client.set_model_version_tag(self.name, str(version), key, value)

    @contextmanager
    def _client(self) -> Iterator[MlflowClient]:
        with self.tracking.answering():
            yield MlflowClient(tracking_uri=self.tracking.uri, registry_uri=self.tracking.uri)


def _registered(version: Any) -> RegisteredVersion:
    return RegisteredVersion(name=version.name, version=int(version.version), tags=dict(version.tags))
