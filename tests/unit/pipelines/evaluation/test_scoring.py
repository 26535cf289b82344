"""Scores of objects: means, what has none, and two evaluations compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import UserError
from pipelines.evaluation.scoring import (
    OBJECTS_SCHEMA,
    REASON,
    SCORE_COLUMNS,
    common_psnr,
    read_objects,
    scored,
    summarize,
)


def objects(psnr: dict[str, float | None], *, known_frame: int = 0) -> dict[str, list[Any]]:
    """Columns of apples with these PSNRs, by sequence; None for one that failed."""
    columns: dict[str, list[Any]] = {name: list(psnr.values()) for name in SCORE_COLUMNS}
    count = len(psnr)
    names = {"category": ["apple"] * count, "sequence": list(psnr), "known_frame": [known_frame] * count}
    reasons = [None if value is not None else "its frame is damaged" for value in psnr.values()]
    return names | {"target_frames": [[3, 4]] * count} | columns | {REASON: reasons}


def write(path: Path, columns: dict[str, list[Any]]) -> Path:
    pq.write_table(pa.table(columns, schema=OBJECTS_SCHEMA), path)
    return path


def test_means_are_over_the_objects_with_scores() -> None:
    columns = objects({"a": 10.0, "b": 12.0, "c": None, "d": 14.0})
    columns |= {"psnr": [11.0, 12.0, None, 16.0], "psnr_mean": [10.5, 11.0, None, 17.0]}
    summary = summarize(columns)
    assert summary["num_scored_objects"] == 3
    assert summary["psnr"] == pytest.approx(13.0)
    assert summary["psnr_gain_copy"] == pytest.approx(1.0)  # of 1, 0 and 2
    assert summary["psnr_gain_copy_error"] == pytest.approx(np.std([1, 0, 2]) / np.sqrt(3))
    assert summary["share_ahead_of_both"] == pytest.approx(1 / 3)  # only the first; the second equals the copy
    assert scored(columns)["sequence"] == ["a", "b", "d"]


def test_objects_come_back_as_written(tmp_path: Path) -> None:
    columns = objects({"a": 10.0, "b": None})
    assert read_objects(write(tmp_path / "objects.parquet", columns)) == columns


def test_other_tables_are_refused(tmp_path: Path) -> None:
    """Columns of types that run code when they are read: tests/unit/infra/storage/test_tables.py."""
    path, columns = tmp_path / "objects.parquet", objects({"a": 10.0})
    with pytest.raises(UserError, match=r"cannot be used .*evaluate again"):
        read_objects(path)
    path.write_bytes(write(path, columns).read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be used"):
        read_objects(path)
    pq.write_table(pa.table(columns | {"more": [1]}), path)
    with pytest.raises(UserError, match=r"cannot be used .*evaluate again"):
        read_objects(path)


def test_two_evaluations_are_compared_on_what_both_have(tmp_path: Path) -> None:
    first = write(tmp_path / "first", objects({"a": 10.0, "b": 20.0, "c": None, "d": 16.0}))
    second = write(tmp_path / "second", objects({"d": 14.0, "c": 90.0, "b": None, "a": 13.0}))
    assert common_psnr(first, second) == (13.0, 13.5, 2)  # of a and d
    assert common_psnr(second, first) == (13.5, 13.0, 2)


@pytest.mark.parametrize("other", [objects({"z": 1.0}), objects({"a": 1.0}, known_frame=7), objects({"a": None})])
def test_nothing_in_common_is_told(other: dict[str, list[Any]], tmp_path: Path) -> None:
    """Neither another object, nor the same from another frame, nor one that failed."""
    paths = write(tmp_path / "first", objects({"a": 10.0})), write(tmp_path / "second", other)
    with pytest.raises(UserError, match="no common object"):
        common_psnr(*paths)
