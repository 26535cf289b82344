"""The file that the captions of all sequences are kept in for the later stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from infra.errors import UserError
from infra.storage.files import StoragePath, atomic_write
from preprocessing.captures.captions import CAPTIONS_NAME, default_caption, read_texts
from preprocessing.shards.reading import FrameIndex
from preprocessing.shards.schema import stable_json


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
    return read_texts(path, remedy="delete its folder and run `viewdiff captions` again")


def open_index(shards: StoragePath, captions: Path) -> FrameIndex:
    """The frames of a folder of shards, each sequence with its captions from a folder that has the file.

    Raises:
        UserError: one of them is missing or damaged.
    """
    return FrameIndex.open(shards).with_captions(read_sequence_captions(captions))


def distinct_captions(texts: Iterable[str], category: str) -> tuple[str, ...]:
    """What a model said of a sequence's frames, spaces tidied, each caption once; without any word of it, what the
    category's name says.
    """
    tidy = (" ".join(text.split()) for text in texts)
    return tuple(dict.fromkeys(text for text in tidy if text)) or (default_caption(category),)
