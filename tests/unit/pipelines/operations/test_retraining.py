"""What is a reason to retrain, as tables; and which registered versions count."""

from __future__ import annotations

import json
from typing import Any

import pytest

from infra.tracking.registry import RegisteredVersion
from pipelines.operations.champion import CAPTURES_TAG, DECISION_TAG, REFUSED_TAG, RIVAL_TAG
from pipelines.operations.retraining import (
    Captures,
    captures_of,
    last_decided,
    missing_categories,
    plan_retraining,
    tried_since,
)

DECIDED = {DECISION_TAG: '{"alias": "challenger", "reason": "worse"}'}
TRAINED = Captures({"teddybear": 20}, {"teddybear": 2})


def version(number: int, captures: dict[str, int] | None = None, **tags: Any) -> RegisteredVersion:
    return RegisteredVersion(name="m", version=number, tags={CAPTURES_TAG: json.dumps(captures or {}), **tags})


@pytest.mark.parametrize(
    ("captures", "new", "reasons"),
    [
        (TRAINED, (), ["all of these captures were trained on"]),
        (Captures({"teddybear": 22}), (), ["all of these captures were trained on"]),  # 2 are refused when read
        (
            Captures({"teddybear": 25}, {"teddybear": 1}),
            (),
            ["category 'teddybear' has 26 sequences, there were 22 in the training"],
        ),
        (
            Captures({"teddybear": 22, "apple": 3}, {"apple": 4}),
            ("apple",),
            ["category 'apple' is new: 3 sequences"],
        ),
        (
            Captures({"teddybear": 22}, {"apple": 4}),
            (),
            ["category 'apple' is new, but none of its 4 sequences is usable; mend them, or relax the settings of pre"],
        ),
        (
            Captures({"teddybear": 22, "pear": 1, "apple": 3}, {"donut": 1}),
            ("apple", "pear"),
            ["category 'apple' is new: 3", "category 'donut' is new, but none", "category 'pear' is new: 1"],
        ),
    ],
)
def test_only_a_new_category_that_is_usable_is_a_reason(
    captures: Captures, new: tuple[str, ...], reasons: list[str]
) -> None:
    planned = plan_retraining(captures, TRAINED)
    assert planned.train == bool(new)
    assert planned.new_categories == new
    assert len(planned.reasons) == len(reasons)
    assert all(said.startswith(reason) for said, reason in zip(planned.reasons, reasons, strict=True))


def test_a_category_that_was_refused_whole_is_new_when_some_of_it_is_usable() -> None:
    tried = Captures({"teddybear": 20}, {"apple": 4})
    assert plan_retraining(Captures({"teddybear": 20, "apple": 4}), tried).new_categories == ("apple",)


@pytest.mark.parametrize(
    ("captures", "given_up", "missing"),
    [
        (Captures({"hydrant": 1, "teddybear": 1}), (), ()),
        (Captures({"apple": 9}), (), ("hydrant", "teddybear")),
        (Captures({"apple": 9, "teddybear": 1}, {"hydrant": 30}), (), ("hydrant",)),  # all of them are refused
        (Captures({"apple": 9}), ("hydrant",), ("teddybear",)),
        (Captures({"apple": 9}), ("teddybear", "hydrant", "donut"), ()),
    ],
)
def test_what_the_champion_would_forget(
    captures: Captures, given_up: tuple[str, ...], missing: tuple[str, ...]
) -> None:
    trained = Captures({"teddybear": 20, "hydrant": 20, "donut": 0}, {"pear": 3})
    assert missing_categories(captures, trained, given_up) == missing


def test_versions_without_a_decision_were_not_tried() -> None:
    versions = [
        version(1, {"donut": 9}, **DECIDED),
        version(2, {"teddybear": 2}, **DECIDED),
        version(3, {"teddybear": 9, "apple": 4}, **DECIDED, **{REFUSED_TAG: '{"apple": 1, "pear": 3}'}),
        version(4, {"hydrant": 5}),
    ]
    tried = tried_since(versions[1], versions)
    assert tried == Captures({"teddybear": 2, "apple": 4}, {"apple": 1, "pear": 3})
    assert captures_of(versions[0]) == Captures({"donut": 9})


def test_a_champion_without_a_decision_is_not_gone_on_from_yet() -> None:
    first, second = version(1, **DECIDED), version(2, **{RIVAL_TAG: "1"})
    assert last_decided(second, [first, second]) is first
    assert last_decided(first, [first, second]) is first
    assert last_decided(version(3, **{RIVAL_TAG: "1"}, **DECIDED), [first]).version == 3
    lonely = version(1, **{RIVAL_TAG: ""})
    assert last_decided(lonely, [lonely]) is lonely  # there is nobody else
