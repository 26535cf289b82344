"""Identity of a value: canonical JSON and its hash.

Only values whose text is the same in every process and on every machine have an identity. Anything else raises,
because a permissive `str(value)` would silently give the same thing two names (or two things one).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from enum import Enum

# Metadata of a dataclass's field that says how work is done, not what: it may change before the work is finished.
HOW = {"identity": False}
FINGERPRINT_LENGTH = 16  # hex characters: 64 bits, enough for billions of artifacts without an accidental collision


def identity(value: object, path: str = "value") -> object:
    """As `plain`, without the fields of dataclasses that are marked with `HOW`."""
    return plain(value, path, whole=False)


def how(value: object) -> dict[str, object]:
    """The rest: the fields of a dataclass, and of dataclasses in its fields, that are marked with `HOW`."""
    found: dict[str, object] = {}
    for field in dataclasses.fields(value):  # type: ignore[arg-type]
        item = getattr(value, field.name)
        if not field.metadata.get("identity", True):
            found[field.name] = plain(item)
        elif dataclasses.is_dataclass(item) and (inner := how(item)):
            found[field.name] = inner
    return found


def plain(value: object, path: str = "value", *, whole: bool = True) -> object:
    """`value` as JSON-ready None, bool, int, float, str, list and dict.

    Accepts None, bool, int, finite float, str, tuple and list, dict with str keys, Enum members (by name) and
    instances of frozen dataclasses (by field).

    Raises:
        TypeError: for everything else; the message names the path inside the value, as in `value.train.seed`.
    """
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{path} is {value}: a number that is not finite has no identity")
        return float(value)
    if isinstance(value, list | tuple):
        return [plain(item, f"{path}[{position}]", whole=whole) for position, item in enumerate(value)]
    if isinstance(value, dict):
        return {_key(key, path): plain(item, f"{path}[{key!r}]", whole=whole) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if not type(value).__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise TypeError(
                f"{path} is a {type(value).__name__}, a dataclass that is not frozen: it may change after it was hashed"
            )
        fields = [field for field in dataclasses.fields(value) if whole or field.metadata.get("identity", True)]
        return {field.name: plain(getattr(value, field.name), f"{path}.{field.name}", whole=whole) for field in fields}
    raise TypeError(f"{path} is a {type(value).__qualname__}, which has no stable identity")


def canonical_json(value: object) -> str:
    """The one JSON text of `value`: keys sorted, no spaces, ASCII. Tuples and lists are alike; 1, 1.0 and true are not.

    Raises:
        TypeError: as `plain`.
    """
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(value: object) -> str:
    """16 hex characters of the SHA-256 of the canonical JSON.

    Raises:
        TypeError: as `plain`.
    """
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()[:FINGERPRINT_LENGTH]


def _key(key: object, path: str) -> str:
    if type(key) is not str:  # an int key and its text would become the same JSON key
        raise TypeError(f"{path} has the key {key!r} of type {type(key).__name__}: keys must be str")
    return key
