"""A local Ray asks for a token, its workers find the checkout, and it ends with its session."""

from __future__ import annotations

import os

import pytest
import ray

from infra.cluster import ray_session
from infra.errors import UserError

pytestmark = pytest.mark.cluster


def test_a_session_starts_and_ends_its_own_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with ray_session(num_cpus=2):
        with ray_session():  # inside a session nothing happens
            pass
        assert ray.is_initialized()

        @ray.remote
        def seen_by_a_worker() -> tuple[str, str]:
            import infra.errors

            return infra.errors.__name__, os.environ["RAY_AUTH_MODE"]

        assert ray.get(seen_by_a_worker.remote()) == ("infra.errors", "token")
    assert not ray.is_initialized()


def test_an_unreachable_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 32)
    with pytest.raises(UserError, match=r"RAY_ADDRESS=127\.0\.0\.1:9"), ray_session():
        pass
