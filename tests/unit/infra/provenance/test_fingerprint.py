"""The identity of configs: the same value anywhere has the same one, and nothing without an identity gets one."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.provenance.fingerprint import HOW, canonical_json, fingerprint, how, identity, plain
from pipelines.settings.presets import tiny
from tests.support.paths import CHECKOUT


class Merge(Enum):
    REPLACE = 1
    ADD = 2


@dataclass(frozen=True, kw_only=True)
class Layer:
    blocks: tuple[tuple[str, int], ...] = (("mid_block", 32),)
    merge: Merge = Merge.REPLACE
    rate: float = 5e-5
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Model:
    layer: Layer = Layer()
    seed: int = 0


@dataclass
class Mutable:
    seed: int = 0


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_known_value_keeps_its_fingerprint() -> None:
    # Frozen on purpose: a change here makes every artifact on every disk unreachable.
    assert canonical_json(Model()) == (
        '{"layer":{"blocks":[["mid_block",32]],"merge":"REPLACE","name":null,"rate":5e-05},"seed":0}'
    )
    assert fingerprint(Model()) == "18fe56216f96f78b"


def test_the_same_in_another_process_with_another_hash_seed() -> None:
    program = (
        "from infra.provenance.fingerprint import fingerprint; print(fingerprint({'b': [1, 2.5, None], 'a': 'ä'}))"
    )
    root = CHECKOUT
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, cwd=root, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{fingerprint({'a': 'ä', 'b': (1, 2.5, None)})}\n".encode()}


@given(JSON_VALUES)
def test_equal_values_have_equal_fingerprints_whatever_the_key_order(value: object) -> None:
    def reversed_keys(item: object) -> object:
        if isinstance(item, dict):
            return {key: reversed_keys(item[key]) for key in reversed(item)}
        return tuple(map(reversed_keys, item)) if isinstance(item, list) else item

    assert fingerprint(value) == fingerprint(reversed_keys(value))


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"layer": Layer(merge=Merge.ADD)}, {"layer": Layer(rate=5.0000001e-5)}]
)
def test_any_changed_field_changes_the_fingerprint(change: dict[str, object]) -> None:
    assert fingerprint(replace(Model(), **change)) != fingerprint(Model())  # type: ignore[arg-type]


@pytest.mark.parametrize(("one", "other"), [(1, True), (1, "1"), (None, "None"), ([], {}), ([1, [2]], [[1], 2])])
def test_values_that_look_alike_differ(one: object, other: object) -> None:
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"train": {"seeds": [1, math.nan]}}, r"value\['train'\]\['seeds'\]\[1\] is nan"),
        (math.inf, "value is inf"),
        ({"folder": Path("a")}, r"value\['folder'\] is a PosixPath"),
        ({1: "a"}, "key 1 of type int"),
        ({"f": print}, r"value\['f'\] is a builtin_function"),
        ({"f": {1, 2}}, r"value\['f'\] is a set"),
        (Model(layer=Mutable()), r"value\.layer is a Mutable, a dataclass that is not frozen"),  # type: ignore[arg-type]
        (Layer, "value is a type"),
        (b"bytes", "value is a bytes"),
    ],
)
def test_values_without_identity_raise_and_name_their_path(value: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        fingerprint(value)


@dataclass(frozen=True, kw_only=True)
class Engine:
    rate: float = 1e-3
    stage: int = field(default=2, metadata=HOW)


@dataclass(frozen=True, kw_only=True)
class Training:
    engine: Engine = Engine()
    layer: Layer = Layer()
    at_once: int = field(default=1, metadata=HOW)


def test_how_work_is_done_is_no_part_of_the_identity() -> None:
    one, other = Training(), Training(engine=Engine(stage=1), at_once=8)
    assert identity(one) == identity(other)
    assert identity(one) != identity(Training(engine=Engine(rate=2e-3)))
    assert how(other) == {"engine": {"stage": 1}, "at_once": 8}
    assert plain(other) != plain(one)


def test_a_training_may_be_divided_otherwise_on_the_way() -> None:
    config = tiny().train
    engine = replace(config.engine, zero_stage=2, compile=True)
    model = replace(config.model, gradient_checkpointing=True)
    divided = replace(config, engine=engine, model=model, micro_batch_size=1, checkpoint_every_steps=7)
    assert fingerprint(identity(divided)) == fingerprint(identity(config))
    for name, value in {"num_steps": 7, "batch_size": 4, "seed": 5, "average_decay": 0.9}.items():
        assert fingerprint(identity(replace(config, **{name: value}))) != fingerprint(identity(config))
