"""Captions that came with the captures, and the caption of an object of which only the category is known."""

from __future__ import annotations

import json

from infra.errors import UserError
from infra.storage.files import StoragePath

# ROOT/<category>/captions.json of captures: {sequence: caption or [caption, ...]}.
# Beside that of the captions stage: {"category/sequence": [caption, ...]}.
CAPTIONS_NAME = "captions.json"


def read_captions(root: StoragePath, category: str) -> dict[str, tuple[str, ...]]:
    """Captions per sequence from the category's captions.json; empty when there is no such file.

    Raises:
        UserError: the file is not a JSON object of texts or lists of texts.
    """
    path = root / category / CAPTIONS_NAME
    return read_texts(path, remedy="correct or remove it") if path.is_file() else {}


def default_caption(category: str) -> str:
    """What to say about an object of which only the category is known: "a photo of an apple"."""
    name = category.replace("_", " ")
    return f"a photo of {'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def read_texts(path: StoragePath, *, remedy: str) -> dict[str, tuple[str, ...]]:
    """The captions in a JSON file, by name.

    Raises:
        UserError: the file is not a JSON object of texts or lists of texts; the message ends with the remedy.
    """
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
