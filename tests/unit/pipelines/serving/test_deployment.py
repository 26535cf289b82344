"""Ray Serve without Ray Serve."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ray import serve
from ray.exceptions import ActorAlreadyExistsError

from pipelines.serving.deployment import _start_serve


def test_who_starts_serve_second_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when two evaluations come to a new cluster at once: neither finds a controller, and the name is given once."""
    answers: Iterator[Exception | None] = iter([ActorAlreadyExistsError("SERVE_CONTROLLER_ACTOR"), None])

    def start(**options: object) -> None:
        if answer := next(answers):
            raise answer

    monkeypatch.setattr(serve, "start", start)
    _start_serve()
    assert next(answers, "all used") == "all used"
