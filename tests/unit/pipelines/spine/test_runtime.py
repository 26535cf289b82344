"""pipelines/spine/runtime.py: numbers of workers that cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from infra.errors import UserError
from pipelines.spine.runtime import RuntimeConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_workers": 2, "min_workers": 3}, "--min-workers 3: must be between 1 and --num-workers 2"),
        ({"num_workers": 2, "min_workers": 0}, "--min-workers 0: must be between 1 and --num-workers 2"),
        ({"max_failures": -1}, "--max-failures -1: must be at least 0"),
        ({"num_workers": 0}, "--num-workers 0: must be at least 1"),
    ],
)
def test_it_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RuntimeConfig(**settings)


def test_as_many_as_there_may_be_are_allowed() -> None:
    assert RuntimeConfig(num_workers=2, min_workers=2, max_failures=0).min_workers == 2
