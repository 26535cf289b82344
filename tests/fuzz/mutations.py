"""Ways to damage a file, each a function of its bytes and of chance."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable
from typing import Any

import numpy as np

Random = np.random.Generator
Mutation = Callable[[bytes, Random], bytes]

# What a JSON value may be replaced with: other types, and values that are out of every range.
WRONG_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 1e308, -1e308, float("nan"), float("inf"), 10**400, "", "x", "\0",
    "../../etc/passwd", "/etc/passwd", "pipe:touch executed", "e" * 10_000,
    [], {}, [[]], [None] * 3, {"a": 1}, [1, 2], [[1, 2, 3]] * 3,
)  # fmt: skip
_BOMB_BYTES = 64 << 20
_HEAD_BYTES = 256


def flip_bits(data: bytes, random: Random) -> bytes:
    """One to eight bits anywhere."""
    changed = bytearray(data)
    for place in random.integers(len(data), size=random.integers(1, 9)):
        changed[place] ^= 1 << int(random.integers(8))
    return bytes(changed)


def truncate(data: bytes, random: Random) -> bytes:
    """The end is missing."""
    return data[: int(random.integers(len(data)))]


def overwrite(data: bytes, random: Random) -> bytes:
    """A stretch of noise, or of zeros."""
    changed, length = bytearray(data), int(random.integers(1, 1 + min(len(data), 2000)))
    start = int(random.integers(len(data) - length + 1))
    changed[start : start + length] = bytes(length) if random.random() < 0.5 else random.bytes(length)
    return bytes(changed)


def insert(data: bytes, random: Random) -> bytes:
    """A stretch of the file again, somewhere else."""
    start, end = sorted(int(place) for place in random.integers(len(data) + 1, size=2))
    at = int(random.integers(len(data) + 1))
    return data[:at] + data[start : min(end, start + 4000)] + data[at:]


def wrong_head(data: bytes, random: Random) -> bytes:
    """One to four bytes near the beginning, where pictures keep what they say of themselves."""
    changed = bytearray(data)
    for place in random.integers(min(len(data), _HEAD_BYTES), size=random.integers(1, 5)):
        changed[place] = int(random.choice([0, 1, 0x7F, 0xFF, random.integers(256)]))
    return bytes(changed)


def replace_all(data: bytes, random: Random) -> bytes:
    """Another file: empty, text, a pickle that would run a command, another format's first bytes."""
    pickle = b"cos\nsystem\n(S'touch executed'\ntR."
    heads = (
        b"",
        b"\n",
        b"[]",
        b"{}",
        pickle,
        b"\x1f\x8b\x08",
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"ply\n",
        b"PAR1",
    )
    return heads[int(random.integers(len(heads)))] + data[: int(random.integers(20))]


BYTES: tuple[Mutation, ...] = (flip_bits, truncate, overwrite, insert, replace_all)


def gzip_bomb(data: bytes, random: Random) -> bytes:
    """Expands to much more than it is."""
    return gzip.compress((b"[" if random.random() < 0.5 else b" ") * _BOMB_BYTES, 9)


def wrong_json(data: bytes, random: Random) -> bytes:
    """JSON with one to three values of another kind, somewhere in the tree; gzipped if it was."""
    zipped = data[:2] == b"\x1f\x8b"
    tree = json.loads(gzip.decompress(data) if zipped else data)
    for _ in range(int(random.integers(1, 4))):
        tree = _with_wrong_value(copy.deepcopy(tree), random)
    text = json.dumps(tree).encode()
    return gzip.compress(text) if zipped else text


def _with_wrong_value(tree: Any, random: Random) -> Any:
    node, parent, key = tree, None, None
    while isinstance(node, dict | list) and len(node) and (parent is None or random.random() < 0.8):
        parent = node
        keys = list(node) if isinstance(node, dict) else range(len(node))
        key = keys[int(random.integers(len(keys)))]
        node = node[key]
    value = WRONG_VALUES[int(random.integers(len(WRONG_VALUES)))]
    if parent is None:
        return value
    if isinstance(parent, dict) and random.random() < 0.2:
        del parent[key]
    else:
        parent[key] = value
    return tree


def ply_bomb(data: bytes, random: Random) -> bytes:
    """Says that it holds more points than there is memory for, or fewer or other things than it does."""
    old = data[data.index(b"element vertex ") :].split(b"\n")[0]
    wrong = (b"99999999999999", b"4000000000", b"-1", b"nan", b"0", b"1e9", b"")
    header = b"element vertex " + wrong[int(random.integers(len(wrong)))]
    changed = data.replace(old, header)
    return changed.replace(b"property float x", b"property list uchar float x") if random.random() < 0.3 else changed


def wrong_field(data: bytes, random: Random) -> bytes:
    """Text of lines with one to three fields of another kind, or missing."""
    lines = [line.split(b" ") for line in data.split(b"\n")]
    wrong = (b"", b"-1", b"0", b"nan", b"inf", b"1e308", b"99999999999999999999", b"x", b"\xff\xfe", b"0x10", b"1_0")
    for _ in range(int(random.integers(1, 4))):
        fields = lines[int(random.integers(len(lines)))]
        place = int(random.integers(max(1, len(fields))))
        fields[place : place + 1] = [wrong[int(random.integers(len(wrong)))]] if random.random() < 0.8 else []
    return b"\n".join(b" ".join(fields) for fields in lines)


def wrong_lines(data: bytes, random: Random) -> bytes:
    """Text with a line missing, twice, elsewhere, or joined with the next one."""
    lines = data.split(b"\n")
    place = int(random.integers(len(lines) - 1))
    line = lines.pop(place)
    way = int(random.integers(4))
    if way == 1:
        lines[place:place] = [line, line]
    elif way == 2:
        lines.insert(int(random.integers(len(lines) + 1)), line)
    elif way == 3:
        lines[place] = line + b" " + lines[place]
    return b"\n".join(lines)
