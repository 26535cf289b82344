"""Paths in S3-compatible object stores, `s3://bucket/key`, with the part of pathlib.Path's interface that is used here.

Endpoint and credentials come from the environment, as for AWS's own tools: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL (for
stores other than Amazon's), AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, or what the machine itself may do.

An object is visible when it is whole, so writing one is atomic. A store that does not answer is asked again for
`PATIENCE_SECONDS`: stores are restarted, and a day's work must not end with that.
"""

from __future__ import annotations

import fnmatch
import io
import mmap
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs

from infra.addresses import shown_address
from infra.errors import UserError
from infra.log import get_logger

SCHEME = "s3://"
PATIENCE_SECONDS = 300.0
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.25, 10.0
_CONNECT_SECONDS, _REQUEST_SECONDS = 5.0, 60.0
_COPY_BYTES = 8 << 20
# What the AWS SDK calls errors that pass. An upload in parts is begun again from its start when the store forgot it.
_PASSING = (
    "NETWORK_CONNECTION", "SLOW_DOWN", "SERVICE_UNAVAILABLE", "INTERNAL_FAILURE", "REQUEST_TIMEOUT", "THROTTLING",
    "NO_SUCH_UPLOAD", "REQUEST_EXPIRED", "UNKNOWN (HTTP status 500)", "UNKNOWN (HTTP status 502)",
    "UNKNOWN (HTTP status 503)", "UNKNOWN (HTTP status 504)",
)  # fmt: skip
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]")
T = TypeVar("T")


@dataclass(frozen=True, order=True)
class S3Path:
    """An object, or what objects' keys have in common as a folder. All methods raise UserError when the store refuses
    or does not answer, and FileNotFoundError where Path would.
    """

    key: str
    """Bucket and key, without slashes at the ends."""

    @staticmethod
    def parse(address: str) -> S3Path:
        """The path of an address `s3://bucket/key`.

        Raises:
            UserError: it names no bucket, or has empty, `.` or `..` parts.
        """
        key = address.removeprefix(SCHEME).rstrip("/")
        bucket, *parts = key.split("/")
        if not (address.startswith(SCHEME) and _BUCKET.fullmatch(bucket)) or {"", ".", ".."} & set(parts):
            raise UserError(f"address {shown_address(address)!r}: write it as s3://bucket/folder")
        return S3Path(key)

    def __str__(self) -> str:
        return SCHEME + self.key

    def __truediv__(self, name: str) -> S3Path:
        return S3Path(f"{self.key}/{name}")

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0] or self.name

    @property
    def parent(self) -> S3Path:
        return S3Path(self.key.rpartition("/")[0])

    def absolute(self) -> S3Path:
        return self

    def is_file(self) -> bool:
        return self._info().type == fs.FileType.File

    def is_dir(self) -> bool:
        return self._info().type == fs.FileType.Directory

    def exists(self) -> bool:
        return self._info().type != fs.FileType.NotFound

    def num_bytes(self) -> int:
        """Size of the object."""
        info = self._info()
        if info.type != fs.FileType.File:
            raise FileNotFoundError(f"no object {self}")
        return info.size

    def read_bytes(self) -> bytes:
        return self._ask(lambda store: _read(store, self.key))

    def open(self, mode: str = "rb") -> io.BytesIO:
        """The whole object, to read."""
        assert mode == "rb", mode
        return io.BytesIO(self.read_bytes())

    def write_bytes(self, data: bytes) -> None:
        """Put an object of these bytes here."""
        self._ask(lambda store: _write(store, self.key, data))

    def upload(self, source: Path) -> None:
        """Put a file here."""
        with source.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if source.stat().st_size else b""
        self._ask(lambda store: _write(store, self.key, data))

    def download(self, target: Path) -> None:
        """Write the object to a file."""

        def receive(store: fs.FileSystem) -> None:
            with store.open_input_stream(self.key) as stream, target.open("wb") as file:
                while chunk := stream.read(_COPY_BYTES):
                    file.write(chunk)

        self._ask(receive)

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self._ask(lambda store: store.delete_file(self.key))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_folder(self) -> None:
        """Remove all objects below. Where each is removed by `unlink`, an empty object stays in the folder's place."""
        self._ask(lambda store: store.delete_dir(self.key))

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing but see that there is the bucket: keys need no folders."""
        bucket = S3Path(self.key.partition("/")[0])
        if not bucket.exists():
            raise UserError(f"{self}: {_where()} has no bucket {bucket.key!r}; create it or name another")

    def iterdir(self) -> Iterator[S3Path]:
        """What is directly in this folder, sorted."""
        selector = fs.FileSelector(self.key, allow_not_found=True)
        yield from sorted(S3Path(info.path) for info in self._ask(lambda store: store.get_file_info(selector)))

    def glob(self, pattern: str) -> Iterator[S3Path]:
        """Paths below this folder; `*` stands for any part of one name."""
        first, _, rest = pattern.partition("/")
        if not any(sign in first for sign in "*?["):
            found = [self / first] if rest or (self / first).exists() else []
        else:
            found = [path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, first)]
        for path in found:
            yield from path.glob(rest) if rest else (path,)

    def _info(self) -> Any:
        return self._ask(lambda store: store.get_file_info(self.key))

    def _ask(self, call: Callable[[fs.FileSystem], T]) -> T:
        """What the store answers to `call`, which may be made several times."""
        wait, end = _FIRST_WAIT_SECONDS, time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return call(_store(_endpoint()))
            except FileNotFoundError:
                raise
            except OSError as error:
                if error.errno is not None:  # of this machine, such as a full disk: the store's errors have no number
                    raise
                text = str(error)
                if not any(sign in text for sign in _PASSING) or time.monotonic() > end:
                    raise UserError(_complaint(str(self), text)) from error
                if wait == _FIRST_WAIT_SECONDS:
                    get_logger("s3").warning("%s does not answer; trying for %.0f s", _where(), PATIENCE_SECONDS)
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)


def _read(store: fs.FileSystem, key: str) -> bytes:
    with store.open_input_stream(key) as stream:
        return stream.read()


def _write(store: fs.FileSystem, key: str, data: bytes | mmap.mmap) -> None:
    with store.open_output_stream(key) as stream:
        # In one call, which cuts it into parts itself: what is closed after an interruption counts as whole.
        stream.write(data)


def _endpoint() -> str | None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if endpoint := os.environ.get(name):
            if not re.fullmatch(r"https?://[^/\s]+/?", endpoint):
                raise UserError(f"{name}={shown_address(endpoint)}: write it as http://host:port or https://host")
            return endpoint
    return None


def _where() -> str:
    return f"the object store at {shown_address(_endpoint() or 'Amazon S3')}"


def _complaint(path: str, text: str) -> str:
    reason = text.split("(Request ID")[0].strip()
    return (
        f"{path}: {_where()} refuses or does not answer ({reason}); check the bucket's name, AWS_ENDPOINT_URL, "
        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, then run the same command again, it resumes"
    )


@lru_cache(maxsize=1)
def _store(endpoint: str | None) -> fs.FileSystem:
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return fs.S3FileSystem(
        endpoint_override=endpoint,  # the SDK below does not read the variables itself
        region=region or ("us-east-1" if endpoint else None),  # else it would be looked up at Amazon
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_REQUEST_SECONDS,
        background_writes=False,  # an error belongs to the write that it happened in
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),  # `_ask` has the patience
    )
