"""What is said when too many objects of an evaluation failed."""

from __future__ import annotations

import pytest

from infra.errors import UserError
from pipelines.evaluation.generating import Failures, require_few, require_scores

FAILURES: Failures = {("apple", "a"): "its frame is damaged", ("apple", "b"): "its frame is damaged"}


def test_more_failures_than_are_allowed_may_be_allowed() -> None:
    require_few(FAILURES, most=2)
    with pytest.raises(
        UserError, match=r"2 objects failed, at most 1 may \(apple/a and others: .*--evaluate.max-failed"
    ):
        require_few(FAILURES, most=1)


def test_without_any_score_nothing_can_be_allowed() -> None:
    require_scores(FAILURES, num_objects=3)
    with pytest.raises(UserError, match=r"no object has scores, .* 2 objects failed \(apple/a and others: ") as error:
        require_scores(FAILURES, num_objects=2)
    assert "--evaluate" not in str(error.value)
