"""MLflow's model registry: the versions of one registered model and their aliases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import infra.mlflow_settings  # noqa: F401

# isort: split
from mlflow import MlflowClient

from infra.tracking import FINGERPRINT_TAG, Tracking

CHAMPION, CHALLENGER = "champion", "challenger"


@dataclass(frozen=True)
class RegisteredVersion:
    """A version in the model registry."""

    name: str
    version: int
    run_id: str
    source: str
    """Address of the model's files."""
    tags: Mapping[str, str]
    aliases: tuple[str, ...]


class Registry:
    """One registered model in one MLflow store. Cheap to make in every process; nothing global is set."""

    def __init__(self, uri: str, name: str) -> None:
        self.tracking, self.name = Tracking(uri), name

    def register(self, *, model_id: str, run_id: str, tags: Mapping[str, str]) -> RegisteredVersion:
        """A version from a logged model; that with `tags`' fingerprint is reused."""
        client = self._client()
        if not client.search_registered_models(f"name = '{self.name}'"):
            client.create_registered_model(self.name)
        for version in self.versions():
            if FINGERPRINT_TAG in tags and version.tags.get(FINGERPRINT_TAG) == tags[FINGERPRINT_TAG]:
                return version
        # The files' own address: MLflow looks a models:/ address up in the process's default store, not in this one.
        source = client.get_logged_model(model_id).artifact_location
        created = client.create_model_version(self.name, source, run_id=run_id, model_id=model_id, tags=dict(tags))
        return _registered(created)

    def versions(self) -> list[RegisteredVersion]:
        """All versions, oldest first."""
        if self.tracking.is_new_database():
            return []
        found = self._client().search_model_versions(f"name = '{self.name}'", max_results=1000)
        return sorted((_registered(version) for version in found), key=lambda version: version.version)

    def set_alias(self, alias: str, version: int) -> None:
        """Point `alias` at a version; it leaves the one that had it."""
        self._client().set_registered_model_alias(self.name, alias, str(version))

    def champion(self) -> RegisteredVersion | None:
        """The version in use, if any."""
        if self.tracking.is_new_database():
            return None
        client = self._client()
        for model in client.search_registered_models(f"name = '{self.name}'"):
            if CHAMPION in model.aliases:
                return _registered(client.get_model_version_by_alias(self.name, CHAMPION))
        return None

    def _client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.tracking.uri, registry_uri=self.tracking.uri)


def _registered(version: Any) -> RegisteredVersion:
    return RegisteredVersion(
        name=version.name,
        version=int(version.version),
        run_id=version.run_id,
        source=version.source,
        tags=dict(version.tags),
        aliases=tuple(version.aliases),
    )
