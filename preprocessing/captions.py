"""Captions of sequences: from the dataset where it brings some, else from the category's name; and the file that a
model's captions, or these, are kept in for the later stages.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from infra.errors import UserError
from infra.storage import StoragePath, atomic_write
from preprocessing.schema import stable_json

# ROOT/<category>/captions.json of captures: {sequence: caption or [caption, ...]}.
# Beside that of the captions stage: {"category/sequence": [caption, ...]}.
CAPTIONS_NAME = "captions.json"


def read_captions(root: StoragePath, category: str) -> dict[str, tuple[str, ...]]:
    """Captions per sequence from the category's captions.json; empty when there is no such file.

    Raises:
        UserError: the file is not a JSON object of texts or lists of texts.
    """
    path = root / category / CAPTIONS_NAME
    return _read(path, remedy="correct or remove it") if path.is_file() else {}


def write_sequence_captions(folder: Path, captions: Mapping[str, Iterable[str]]) -> None:
    """Write the captions of all sequences, by "category/sequence", whole or not at all."""
    atomic_write(folder / CAPTIONS_NAME, stable_json({key: list(texts) for key, texts in captions.items()}))


def read_sequence_captions(folder: Path) -> dict[str, tuple[str, ...]]:
    """Captions by "category/sequence" that `write_sequence_captions` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = folder / CAPTIONS_NAME
    if not path.is_file():
        raise UserError(f"captions {path}: no such file; run `viewdiff captions` again")
    return _read(path, remedy="delete its folder and run `viewdiff captions` again")


def distinct_captions(texts: Iterable[str], category: str) -> tuple[str, ...]:
    """What a model said of a sequence's frames, spaces tidied, each caption once; without any word of it, what the
    category's name says.
    """
    tidy = (" ".join(text.split()) for text in texts)
    return tuple(dict.fromkeys(text for text in tidy if text)) or (default_caption(category),)


def default_caption(category: str) -> str:
    """What to say about an object of which only the category is known: "a photo of an apple"."""
    name = category.replace("_", " ")
    return f"a photo of {'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _read(path: StoragePath, *, remedy: str) -> dict[str, tuple[str, ...]]:
    try:
        entries = json.loads(path.read_bytes())
        return {name: _texts(value) for name, value in entries.items()}
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise UserError(
            f"captions {path}: not a JSON object of sequence names with a text or a list of texts ({error}); {remedy}"
        ) from error


def _texts(value: object) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise TypeError(f"{value!r} is neither a text nor a list of texts")
    "".join(texts).encode()  # half a surrogate pair is no text; it would fail where it is stored
    return tuple(texts)
