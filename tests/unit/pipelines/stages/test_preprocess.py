"""What preprocess tells of captures that it refused."""

from __future__ import annotations

from typing import Any

from pipelines.stages.preprocess import outcome_lines


def manifest(stored: int, **reasons: int) -> dict[str, Any]:
    rejected = [
        {"category": "apple", "sequence": f"{reason}{number}", "reason": reason}
        for reason, count in reasons.items()
        for number in range(count)
    ]
    return {"num_sequences": stored, "rejected": rejected}


def test_refusals_are_counted_by_reason() -> None:
    assert outcome_lines(manifest(2)) == ["preprocess  2 of 2 captures stored"]
    assert outcome_lines(manifest(4, dark=1, small=3)) == [
        "preprocess  4 of 8 captures stored, 4 refused:",
        "        3  small (as apple/small0)",
        "        1  dark (as apple/dark0)",
    ]


def test_rare_reasons_are_only_counted() -> None:
    lines = outcome_lines(manifest(1, a=7, b=6, c=5, d=4, e=3, f=2, g=1))
    assert lines[0] == "preprocess  1 of 29 captures stored, 28 refused:"
    assert lines[5:] == ["        3  e (as apple/e0)", "        3  for 2 other reasons, see dataset.json"]
