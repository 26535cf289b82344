"""Nothing in a Parquet file runs when the project reads it, whatever libraries have taught Arrow."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import UserError
from infra.storage.tables import footer_entries, read_table
from pipelines.evaluation.scoring import OBJECTS_SCHEMA, read_objects
from preprocessing.config import PreprocessConfig
from preprocessing.shards.commit import commit_folder
from preprocessing.shards.planning import ShardPlan, plan_shards
from preprocessing.shards.reading import FrameIndex
from preprocessing.shards.schema import INDEX_SCHEMA, read_manifest, write_manifest
from preprocessing.shards.writing import committed_record, read_rows, record_path, write_shard
from tests.support.captures import make_capture, write_dataset
from tests.support.trap import Trap

CONFIG = PreprocessConfig(image_size=32, sequences_per_shard=2, minimum_frames=8)
SCHEMA = pa.schema([("name", pa.dictionary(pa.int8(), pa.string())), ("place", pa.list_(pa.float32(), 3))])
ROWS = [{"name": "a", "place": [1.0, 2.0, 3.0]}, {"name": "b", "place": [4.0, 5.0, 6.0]}]
REFUSED = "of a type that only some library knows"


class Noticed(pa.ExtensionType):
    """A column type that leaves a file behind when Arrow makes it of what a file says."""

    mark: Path

    def __init__(self) -> None:
        super().__init__(pa.int32(), "tests.noticed")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> Noticed:
        cls.mark.touch()
        return cls()


@pytest.fixture
def mark(tmp_path: Path) -> Any:
    Noticed.mark = tmp_path / "mark"
    pa.register_extension_type(Noticed())
    yield Noticed.mark
    pa.unregister_extension_type("tests.noticed")


def noticed_column(length: int, mark: Path) -> pa.Array:
    return pa.ExtensionArray.from_storage(Noticed(), pa.array([0] * length, pa.int32()))


def pickled_column(length: int, mark: Path) -> pa.Array:
    """Of the type that `ray.data` registers for the whole process: it unpickles each value that is looked at."""
    pytest.importorskip("ray.data")
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    values = pa.array([pickle.dumps(Trap(mark))] * length, pa.large_binary())
    return pa.ExtensionArray.from_storage(ArrowPythonObjectType(), values)


PLANTS = (noticed_column, pickled_column)


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def read(data: bytes) -> pa.Table:
    return read_table(data, SCHEMA, name="the table", remedy="do this")


@pytest.fixture
def shards(tmp_path: Path) -> tuple[Path, ShardPlan]:
    write_dataset(tmp_path / "raw", [make_capture("apple", name, seed=seed) for seed, name in enumerate("ab")])
    (tmp_path / "shards").mkdir()
    return tmp_path / "shards", plan_shards(tmp_path / "raw", CONFIG)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS, SCHEMA)
    path = tmp_path / "key=value" / "table.parquet"  # of such folders Arrow would make a column
    path.parent.mkdir()
    path.write_bytes(parquet(table))
    for source in (path, path.read_bytes()):
        found = read_table(source, SCHEMA, name="", remedy="")
        assert found.to_pylist() == ROWS
        assert found.column_names == SCHEMA.names
    assert read(parquet(SCHEMA.empty_table())).num_rows == 0


@pytest.mark.parametrize("plant", PLANTS)
def test_the_traps_work(plant: Any, mark: Path) -> None:
    """Without care such a file does run its code."""
    data = parquet(pa.table({"name": plant(2, mark)}))
    mark.unlink(missing_ok=True)
    pq.read_table(io.BytesIO(data)).to_pylist()
    assert mark.exists()


def test_a_schema_alone_is_dangerous(mark: Path) -> None:
    data = parquet(pa.table({"name": noticed_column(2, mark)}))
    mark.unlink(missing_ok=True)
    pq.read_metadata(io.BytesIO(data))
    assert mark.exists()


@pytest.mark.parametrize("plant", PLANTS)
def test_registered_types_are_refused(plant: Any, mark: Path) -> None:
    table = pa.Table.from_pylist(ROWS, SCHEMA)
    inside = pa.StructArray.from_arrays([plant(2, mark)], ["inside"])
    for column in (plant(2, mark), inside):
        for planted in (table.set_column(0, "name", column), table.append_column("more", column)):
            data = parquet(planted)
            mark.unlink(missing_ok=True)
            with pytest.raises(UserError, match=rf"^the table cannot be used \(.*{REFUSED}.*\); do this$"):
                read(data)
            with pytest.raises(ValueError, match=REFUSED):
                footer_entries(data)
            assert not mark.exists()


@pytest.mark.parametrize("plant", PLANTS)
def test_the_index(plant: Any, mark: Path, shards: tuple[Path, ShardPlan]) -> None:
    folder, plan = shards
    commit_folder(folder, [write_shard(task, folder.parent / "raw", folder, CONFIG) for task in plan.tasks], (), 32)
    index = pq.read_table(folder / "index.parquet")
    position = INDEX_SCHEMA.names.index("caption")
    data = parquet(index.set_column(position, "caption", plant(index.num_rows, mark)))
    (folder / "index.parquet").write_bytes(data)
    manifest = read_manifest(folder)  # whoever plants it makes the digests fit
    sealed = {"index_sha256": hashlib.sha256(data).hexdigest(), "index_bytes": len(data)}
    write_manifest(folder / "dataset.json", manifest | sealed)
    mark.unlink(missing_ok=True)
    with pytest.raises(UserError, match=rf"index\.parquet cannot be used .*{REFUSED}"):
        FrameIndex.open(folder)
    assert not mark.exists()


@pytest.mark.parametrize("plant", PLANTS)
def test_the_rows_of_a_shard(plant: Any, mark: Path, shards: tuple[Path, ShardPlan]) -> None:
    folder, plan = shards
    [task] = plan.tasks
    write_shard(task, folder.parent / "raw", folder, CONFIG)
    path = record_path(folder, task.number)
    assert isinstance(path, Path)
    rows = pq.read_table(path)
    planted = rows.set_column(INDEX_SCHEMA.names.index("caption"), "caption", plant(rows.num_rows, mark))
    path.write_bytes(parquet(planted))
    mark.unlink(missing_ok=True)
    with pytest.raises(UserError, match=rf"rows\.parquet: cannot be read .*{REFUSED}.*; delete it"):
        committed_record(folder, task, CONFIG)
    with pytest.raises(UserError, match=rf"rows\.parquet cannot be used .*{REFUSED}.*; delete it"):
        read_rows(folder, task.number)
    assert not mark.exists()


@pytest.mark.parametrize("plant", PLANTS)
def test_the_objects_of_an_evaluation(plant: Any, mark: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = {name: [0.5, 1.5] for name in OBJECTS_SCHEMA.names}
    values |= {"category": ["a", "b"], "sequence": ["c", "d"], "known_frame": [0, 1], "target_frames": [[1], [2]]}
    values |= {"reason": [None, None]}
    table = pa.table(values, schema=OBJECTS_SCHEMA)
    path = tmp_path / "objects.parquet"
    path.write_bytes(parquet(table))
    assert read_objects(path) == values
    path.write_bytes(parquet(table.set_column(1, "sequence", plant(2, mark))))
    mark.unlink(missing_ok=True)
    with pytest.raises(UserError, match=rf"objects\.parquet cannot be used .*{REFUSED}.*evaluate again"):
        read_objects(path)
    assert not mark.exists()


def test_other_columns_are_named() -> None:
    table = pa.Table.from_pylist(ROWS, SCHEMA)
    for other, message in (
        (table.drop_columns("place"), "it has 0 columns place, not 1"),
        (table.append_column("name", table["name"]), "it has 2 columns name, not 1"),
        (table.append_column("more", table["name"]), "it has a column 'more', which is not known"),
        (table.set_column(0, "name", pa.array([1, 2])), "its column name is int64, not dictionary"),
        (table.set_column(0, "name", pa.array(["a", "b"])), "its column name is string, not dictionary"),
    ):
        with pytest.raises(UserError, match=message):
            read(parquet(other))


def test_a_type_that_parquet_knows_is_no_way_around() -> None:
    """Arrow makes types of its own of some of Parquet's: these are not the expected ones either."""
    data = parquet(pa.table({"name": pa.array(["{}"], pa.json_()), "place": [[1.0, 2.0, 3.0]]}))
    with pytest.raises(UserError, match="cannot be used"):
        read(data)


def test_a_second_description_of_the_columns_is_refused(mark: Path) -> None:
    """Of two entries with one name a reader may look at the other than Arrow does."""
    planted = base64.b64encode(pa.schema([("name", Noticed())]).serialize().to_pybytes())
    table = pa.table({"name": pa.array([1], pa.int32())}).replace_schema_metadata({"ARROW:schemA": planted})
    data = parquet(table)
    mark.unlink(missing_ok=True)
    with pytest.raises(UserError, match="does not describe the columns as Arrow does"):
        read(data.replace(b"ARROW:schemA", b"ARROW:schema"))
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["bits", "cuts"])
def test_damaged_files_are_refused_in_a_line(kind: str) -> None:
    whole = parquet(pa.Table.from_pylist(ROWS, SCHEMA))
    generator = np.random.default_rng(0)
    messages = []
    for _ in range(300):
        data = bytearray(whole)
        if kind == "bits":
            data[generator.integers(len(data))] ^= 1 << int(generator.integers(8))
        else:
            del data[generator.integers(len(data)) :]
        try:
            read(bytes(data))  # flipped bits may give other values: the index's digest tells
        except UserError as error:
            messages.append(str(error))
    assert all(message.endswith("; do this") and "\n" not in message for message in messages)
    assert len(messages) == 300 if kind == "cuts" else len(messages) > 100


def test_entries_of_a_footer() -> None:
    table = pa.table({"a": [1]}).replace_schema_metadata({"key": json.dumps({"of": "mine"})})
    assert json.loads(footer_entries(parquet(table))[b"key"]) == {"of": "mine"}
    with pytest.raises(ValueError, match="no Parquet file"):
        footer_entries(b"")
