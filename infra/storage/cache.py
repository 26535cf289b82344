"""Local copies of what lies in an object store: of a few files at a time, and of whole files that are kept."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from infra.errors import UserError
from infra.storage.files import StoragePath, digest_file, num_bytes, publishing
from infra.storage.locks import take_lock
from infra.storage.s3 import S3Path

CACHE_VARIABLE = "VIEWDIFF_CACHE"
_DOWNLOADS_AT_ONCE = 16  # waiting, not computing


def fetched(root: StoragePath, groups: Iterable[Sequence[str]]) -> Generator[Path]:
    """For each group of names below `root` a local folder that has them under the same names, as long as the caller
    works on it; names that do not exist are left out. The next group is on its way meanwhile, so at most two groups
    take space. A local root is that folder itself.

    Raises:
        UserError: the object store refuses or does not answer.
    """
    if isinstance(root, Path):
        yield from (root for _ in groups)
        return
    with closing(_downloads(root, groups)) as downloads:
        for folder in downloads:
            with folder:
                yield Path(folder.name)


def _downloads(root: S3Path, groups: Iterable[Sequence[str]]) -> Generator[tempfile.TemporaryDirectory[str]]:
    with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool, ThreadPoolExecutor(1) as background:

        def download(names: Sequence[str]) -> tempfile.TemporaryDirectory[str]:
            folder = tempfile.TemporaryDirectory(prefix="viewdiff-")
            list(pool.map(lambda name: _download(root / name, Path(folder.name) / name), names))
            return folder

        waiting = None
        for names in groups:
            following = background.submit(download, names)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def _download(source: S3Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.download(target)
    except FileNotFoundError:
        return


def cache_dir() -> Path:
    """Where local copies are kept: $VIEWDIFF_CACHE, else ~/.cache/viewdiff."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/viewdiff").expanduser()


def local_copy(path: StoragePath, *, sha256: str, size: int) -> Path:
    """A local file with the content of `path`: itself, or a copy in the cache. A copy is downloaded once for all
    processes of a machine, checked against its digest then, and named by it, so that it is never out of date.

    Raises:
        UserError: the file is missing, or not of `size` bytes, or the copy's digest is another.
    """
    if isinstance(path, Path):
        _require_size(path, num_bytes(path), size)
        return path
    copy = cache_dir() / sha256[:2] / sha256
    try:
        if num_bytes(copy) != size:
            _fill(copy, path, sha256, size)
    except OSError as error:
        raise UserError(
            f"cache {cache_dir()}: {error.strerror or error}; make space, empty it, or name another folder in "
            f"{CACHE_VARIABLE}"
        ) from error
    return copy


def _fill(copy: Path, path: S3Path, sha256: str, size: int) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    with copy.with_suffix(".lock").open("w") as lock:
        # The others wait instead of downloading it too.
        take_lock(lock, wait=True, remedy=f"name a folder on another one in {CACHE_VARIABLE}")
        if num_bytes(copy) == size:
            return
        for orphan in copy.parent.glob(f".{sha256}-*.tmp"):  # of a process that was killed
            orphan.unlink()
        with publishing(copy) as partial:
            try:
                path.download(partial)
            except FileNotFoundError:
                partial.unlink(missing_ok=True)
            _require_size(path, num_bytes(partial), size)
            if digest_file(partial) != sha256:
                raise UserError(f"{path}: its digest is another than when it was written; restore it or write it again")


def _require_size(path: StoragePath, found: int, wanted: int) -> None:
    if found != wanted:
        raise UserError(f"{path}: {found} bytes, {wanted} were written; restore it or write it again")
