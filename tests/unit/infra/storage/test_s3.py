"""Paths in an object store, against a real server process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.storage import s3
from infra.storage.cache import CACHE_VARIABLE, fetched, local_copy
from infra.storage.files import atomic_write, digest_file, num_bytes, open_path, publishing
from infra.storage.s3 import S3Path
from tests.support.s3_server import BUCKET, S3Server

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def root(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Path:
    """A folder of this test's own."""
    for name, value in (server.environment | {CACHE_VARIABLE: str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    root = open_path(f"s3://{BUCKET}/{tmp_path.name}/")
    assert isinstance(root, S3Path)
    return root


def test_an_object_is_a_file(root: S3Path, tmp_path: Path) -> None:
    path = root / "a" / "b.tar.one"
    assert (str(path), path.name, path.stem, path.parent) == (f"{root}/a/b.tar.one", "b.tar.one", "b.tar", root / "a")
    assert not path.exists()
    assert num_bytes(path) == 0
    with pytest.raises(FileNotFoundError):
        path.read_bytes()
    atomic_write(path, b"one")
    atomic_write(path, b"three")
    assert path.is_file()
    assert (root / "a").is_dir()
    assert not path.is_dir()
    assert path.read_bytes() == path.open().read() == b"three"
    assert num_bytes(path) == 5
    path.download(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"three"
    path.unlink()
    path.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        path.unlink()


def test_listing_is_by_name(root: S3Path) -> None:
    for name in ("x/one.json", "x/two.json", "x/deep/three.json", "y/one.json", "z.json"):
        (root / name).write_bytes(b"")

    def names(pattern: str) -> list[str]:
        return [str(path).removeprefix(f"{root}/") for path in root.glob(pattern)]

    assert names("*/one.json") == ["x/one.json", "y/one.json"]
    assert names("x/*.json") == ["x/one.json", "x/two.json"]
    assert names("*") == ["x", "y", "z.json"]
    assert names("x/none.json") == []
    assert list((root / "nothing").iterdir()) == []


def test_a_file_is_published_whole_or_not_at_all(root: S3Path) -> None:
    large = bytes(range(256)) * 80_000  # 20 MB: an upload in parts
    with publishing(root / "whole") as partial:
        partial.write_bytes(large)
    assert (root / "whole").read_bytes() == large
    with pytest.raises(ZeroDivisionError):
        _fail_halfway(root / "failed")
    with publishing(root / "none"):
        pass
    assert [path.name for path in root.iterdir()] == ["whole"]


def _fail_halfway(path: S3Path) -> None:
    with publishing(path) as partial:
        partial.write_bytes(b"half")
        raise ZeroDivisionError


def test_groups_of_files_are_fetched_ahead_and_removed(root: S3Path) -> None:
    for name in ("a/1", "a/2", "b/1"):
        (root / name).write_bytes(name.encode())
    folders = []
    for folder, expected in zip(fetched(root, [["a/1", "a/2"], ["b/1", "missing"]]), (["1", "2"], ["1"]), strict=True):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        assert [path.name for path in files] == expected
        assert files[0].read_bytes() in (b"a/1", b"b/1")
        folders.append(folder)
    assert not any(folder.exists() for folder in folders)


def test_a_copy_is_made_and_checked_once(root: S3Path, tmp_path: Path) -> None:
    (root / "shard").write_bytes(b"content")
    (tmp_path / "same").write_bytes(b"content")
    digest = digest_file(tmp_path / "same")
    copy = local_copy(root / "shard", sha256=digest, size=7)
    assert copy.read_bytes() == b"content"
    (root / "shard").unlink()
    assert local_copy(root / "shard", sha256=digest, size=7) == copy
    assert local_copy(tmp_path / "same", sha256=digest, size=7) == tmp_path / "same"
    (root / "shard").write_bytes(b"Content")
    with pytest.raises(UserError, match=r"/shard: its digest is another than when it was written"):
        local_copy(root / "shard", sha256="0" * 64, size=7)
    with pytest.raises(UserError, match=r"/shard: 7 bytes, 8 were written"):
        local_copy(root / "shard", sha256="1" * 64, size=8)
    with pytest.raises(UserError, match=r"/gone: 0 bytes, 8 were written"):
        local_copy(root / "gone", sha256="2" * 64, size=8)
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_a_useless_cache_is_told(root: S3Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "shard").write_bytes(b"content")
    monkeypatch.setenv(CACHE_VARIABLE, "/dev/null/x")
    with pytest.raises(UserError, match=r"cache /dev/null/x: Not a directory; make space, empty it, or name another"):
        local_copy(root / "shard", sha256="0" * 64, size=7)


def test_a_store_that_is_away_is_waited_for(server: S3Server, root: S3Path) -> None:
    atomic_write(root / "before", b"kept")
    server.stop()
    starter = threading.Timer(2.0, server.start)
    starter.start()
    started = time.monotonic()
    assert (root / "before").read_bytes() == b"kept"
    assert time.monotonic() - started > 1.5
    starter.join()


def test_what_cannot_work_is_told(server: S3Server, root: S3Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"s3://nobody/x: the object store at http://127.0.0.1:\d+ refuses .*NO_SUCH_BU"
    ):
        S3Path("nobody/x").write_bytes(b"")
    for address in ("s3://", "s3:///x", "s3://bucket/../x", "s3://bucket//x", "s3://user:word@bucket/x", "s3://B"):
        with pytest.raises(UserError, match="write it as s3://bucket/folder"):
            open_path(address)
    for address in ("gs://bucket/x", "s3:/bucket/x", ""):
        with pytest.raises(UserError, match=rf"address '{address}': name a folder, or s3://"):
            open_path(address)
    with pytest.raises(UserError, match=r"s3://nobody/x: the object store at \S+ has no bucket 'nobody'; create it"):
        S3Path("nobody/x").mkdir()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9")
    with pytest.raises(UserError, match=r"AWS_ENDPOINT_URL=127.0.0.1:9: write it as http://host:port"):
        root.exists()
    monkeypatch.setattr(s3, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"object store at http://127.0.0.1:9 refuses or does not answer .* it resumes"):
        (root / "x").read_bytes()
