"""Rows of equal shape and type, cut into .npy files that are written one by one and memory-mapped to be read."""

from __future__ import annotations

import tokenize
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from infra.errors import UserError
from infra.storage.cache import local_copy
from infra.storage.files import StoragePath, digest_file, num_bytes, publishing

_HEADER_ERRORS = (ValueError, SyntaxError, EOFError, tokenize.TokenError)  # a .npy file's header is a Python literal


class StoredFile(NamedTuple):
    """A file of a folder, as it was written."""

    name: str
    num_bytes: int
    sha256: str


def store_array(folder: StoragePath, name: str, rows: np.ndarray) -> StoredFile:
    """Write rows [n, ...] as `name`, whole or not at all."""
    with publishing(folder / name) as partial:
        with partial.open("wb") as file:
            np.save(file, rows)
        return StoredFile(name, num_bytes(partial), digest_file(partial))


class ChunkedRows:
    """N rows in files of `chunk_rows` rows each, the last one shorter. Files are opened, and fetched from an object
    store, at first use, also after a move to another process.
    """

    def __init__(self, folder: StoragePath, files: Sequence[StoredFile], *, chunk_rows: int) -> None:
        self._folder, self._files, self._chunk_rows = folder, tuple(files), chunk_rows
        self._views: list[memoryview | None] = [None] * len(files)
        first = self._open(0)
        self.shape, self.dtype = first.shape[1:], first.dtype
        self._row_bytes = int(np.prod(self.shape)) * self.dtype.itemsize

    def take(self, rows: np.ndarray) -> np.ndarray:
        """[n, *shape], a copy of the rows of these numbers. Raises UserError when a file is missing or damaged."""
        chunks, places = np.divmod(rows, self._chunk_rows)
        size = self._row_bytes
        # Slices of the maps joined by one call: for rows of some kilobytes as fast as copying them in order.
        parts = [
            (self._views[chunk] or self._view(chunk))[start : start + size]
            for chunk, start in zip(chunks.tolist(), (places * size).tolist(), strict=True)
        ]
        return np.frombuffer(bytearray().join(parts), dtype=self.dtype).reshape(len(parts), *self.shape)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_views": [None] * len(self._files)}

    def _view(self, chunk: int) -> memoryview:
        view = memoryview(self._open(chunk).reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        self._views[chunk] = view
        return view

    def _open(self, chunk: int) -> np.ndarray:
        file = self._files[chunk]
        path = local_copy(self._folder / file.name, sha256=file.sha256, size=file.num_bytes)
        try:
            return np.load(path, mmap_mode="r")
        except _HEADER_ERRORS as error:
            raise UserError(f"{path}: damaged ({error}); restore it or write it again") from error
