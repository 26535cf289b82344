"""Reading of Parquet files that somebody else may have written: only columns of the kinds that were asked for.

Arrow lets libraries register column types of their own for the whole process, with Python code that runs when a file
names such a type: already when its schema is read, or when a value is (`ray.data` registers a type whose values are
pickles). So the names in a file's footer are looked at before Arrow is given the file.
"""

from __future__ import annotations

import base64
import functools
import io
import re
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import UserError

_END = struct.Struct("<I4s")  # of a file: length of the footer in bytes, magic
_MAGIC = b"PAR1"
# In a footer (Thrift's compact protocol): the entry in which Arrow keeps its own column types, after its name the byte
# "next field, a string", the string's length (7 bits a byte, the last one below 128), and the string.
_ENTRY = b"ARROW:schema"
_DESCRIPTION = re.compile(_ENTRY + rb"\x18([\x80-\xff]{0,4}[\x00-\x7f])", re.DOTALL)
_EXTENSION = b"ARROW:extension"  # what the description has in it for each column of a registered type


def read_table(source: Path | bytes, schema: pa.Schema, *, name: str, remedy: str) -> pa.Table:
    """The table in a Parquet file, or in its bytes. `schema`: the columns that it was written with.

    Raises:
        UserError: it has other columns or a damaged footer, or its values cannot be read; `name` says what it is and
            `remedy` what to do.
    """
    try:
        _refuse_registered_types(source)
        file = pq.ParquetFile(_open(source), arrow_extensions_enabled=False)
        if difference := _difference(file.schema_arrow, _as_read(schema)):
            raise ValueError(difference)
        return file.read()
    except (ValueError, OSError, pa.ArrowException) as error:
        raise UserError(f"{name} cannot be used ({_first_line(error)}); {remedy}") from error


def footer_entries(source: Path | bytes) -> dict[bytes, bytes]:
    """The key-value entries in a Parquet file's footer.

    Raises:
        ValueError, OSError or ArrowException: the footer is damaged, or names a column type of some library's own.
    """
    _refuse_registered_types(source)
    entries: dict[bytes, bytes] = pq.read_metadata(_open(source)).metadata or {}
    return entries


def _refuse_registered_types(source: Path | bytes) -> None:
    """Raise ValueError where the footer names a column type that is not Arrow's own, without giving it to Arrow."""
    footer = _footer(source)
    if _ENTRY not in footer:
        return
    match = _DESCRIPTION.search(footer)
    if match is None or footer.count(_ENTRY) > 1:  # which of several Arrow would take is not ours to guess
        raise ValueError("its footer does not describe the columns as Arrow does")
    length = sum((byte & 127) << 7 * place for place, byte in enumerate(match[1]))
    description = base64.b64decode(footer[match.end() : match.end() + length], validate=True)
    if _EXTENSION in description:
        raise ValueError("it has a column of a type that only some library knows, which may run code when read")


def _footer(source: Path | bytes) -> bytes:
    with _open(source) as file:
        size = file.size()
        file.seek(max(0, size - _END.size))
        end = file.read()
        length, magic = _END.unpack(end) if len(end) == _END.size else (0, b"")
        if magic != _MAGIC or not 0 < length <= size - _END.size:
            raise ValueError("it is no Parquet file, or cut off")
        file.seek(size - _END.size - length)
        footer: bytes = file.read(length)
        return footer


def _open(source: Path | bytes) -> pa.NativeFile:
    return pa.OSFile(str(source)) if isinstance(source, Path) else pa.BufferReader(source)


@functools.cache
def _as_read(schema: pa.Schema) -> pa.Schema:
    """The schema that Arrow reads from a file written with `schema`: names within lists are other ones."""
    buffer = io.BytesIO()
    pq.write_table(schema.empty_table(), buffer)
    return pq.read_schema(buffer)


def _difference(found: pa.Schema, expected: pa.Schema) -> str | None:
    """The first column that is not as expected; None where all are. Notes beside the columns do not matter."""
    for column in expected:
        if found.names.count(column.name) != 1:
            return f"it has {found.names.count(column.name)} columns {column.name}, not 1"
        if not found.field(column.name).equals(column):
            return f"its column {column.name} is {found.field(column.name).type}, not {column.type}"
    unknown = [name for name in found.names if name not in expected.names]
    return f"it has a column {unknown[0]!r}, which is not known" if unknown else None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
