"""A stage runs once, resumes where it was killed, and leaves nothing half-written."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.errors import UserError
from infra.storage.files import digest_folder
from pipelines.spine.artifacts import Checkpoint, ModelVersion, Shards, external_dataset, load_artifact, read_record
from pipelines.spine.runtime import RuntimeConfig
from pipelines.spine.stage import Stage, is_finished, partial_dir, published_dir, run_stage
from tests.support.paths import CHECKOUT


@dataclass(frozen=True, kw_only=True)
class CountConfig:
    up_to: int = 3


def count(config: CountConfig, inputs: Mapping[str, Any], folder: Path, runtime: RuntimeConfig) -> dict[str, object]:
    """Writes one file per number, skipping those that an earlier attempt wrote."""
    done = sorted(folder.glob("*.txt"))
    for number in range(len(done), config.up_to):
        (folder / f"{number}.txt").write_text(str(number))
    return {"resumed_at": len(done), "count": config.up_to}


def counting(**changes: Any) -> Stage:
    return Stage(**({"name": "count", "run": count, "kind": Shards, "config": CountConfig()} | changes))


@pytest.fixture
def runtime(tmp_path: Path) -> RuntimeConfig:
    return RuntimeConfig(root=str(tmp_path / "runs"))


def test_runs_once_and_is_reused_byte_for_byte(runtime: RuntimeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    first = run_stage(counting(), runtime)
    assert "count  done in" in capsys.readouterr().out
    before = digest_folder(runtime.root_dir)
    second = run_stage(counting(run=fail), runtime)  # would raise if it ran
    assert "count  reused" in capsys.readouterr().out
    assert first == second
    assert isinstance(second, Shards)
    assert second.facts == {"resumed_at": 0, "count": 3}
    assert digest_folder(runtime.root_dir) == before
    assert sorted(path.name for path in second.folder.iterdir()) == ["0.txt", "1.txt", "2.txt", "artifact.json"]


def test_what_lies_elsewhere_is_made_and_recorded_every_time(runtime: RuntimeConfig) -> None:
    """Else nobody would notice that it is gone there, or has changed."""
    for alias in ("champion", "former champion"):
        stage = counting(kind=ModelVersion, run=lambda *_, alias=alias: {"alias": alias})
        made = run_stage(stage, runtime)
        assert made.facts == {"alias": alias}
        assert load_artifact(made.folder, ModelVersion) == made
        assert not is_finished(stage, runtime)
        assert [path.name for path in made.folder.parent.iterdir()] == [stage.fingerprint]


def test_record_says_what_made_it(runtime: RuntimeConfig) -> None:
    source = run_stage(counting(name="source"), runtime)
    record = read_record(run_stage(counting(inputs={"source": source}), runtime).folder)
    assert record["kind"] == "Shards"
    assert record["config"] == {"up_to": 3}
    assert record["inputs"] == {"source": {"kind": "Shards", "fingerprint": source.fingerprint}}
    assert record["seconds"] >= 0
    assert record["resumed"] is False
    assert {"python", "torch", "ray", "mlflow", "deepspeed"} <= set(record["versions"])


def test_fingerprint_sees_the_work_and_not_the_place(tmp_path: Path) -> None:
    stage = counting(inputs={"source": Shards("a" * 16, tmp_path / "here")})
    assert stage.fingerprint == counting(inputs={"source": Shards("a" * 16, tmp_path / "there", {"n": 1})}).fingerprint
    others = [
        counting(),
        counting(inputs={"source": Shards("b" * 16, tmp_path)}),
        counting(inputs={"other": Shards("a" * 16, tmp_path)}),
        counting(inputs=stage.inputs, version=2),
        counting(inputs=stage.inputs, name="count2"),
        counting(inputs=stage.inputs, config=CountConfig(up_to=4)),
    ]
    assert len({stage.fingerprint, *(other.fingerprint for other in others)}) == 7


def fail(config: CountConfig, inputs: Mapping[str, Any], folder: Path, runtime: RuntimeConfig) -> dict[str, object]:
    (folder / "0.txt").write_text("0")
    raise RuntimeError("broken")


def test_a_failed_stage_is_invisible_and_resumes(runtime: RuntimeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="broken"):
        run_stage(counting(run=fail), runtime)
    assert not is_finished(counting(), runtime)
    assert run_stage(counting(), runtime).facts["resumed_at"] == 1
    assert "count  resumes" in capsys.readouterr().out


KILLED = """
import sys, time
from pathlib import Path
from tests.unit.pipelines.spine.test_stage import counting, run_stage, RuntimeConfig

def hang(config, inputs, folder, runtime):
    (folder / "0.txt").write_text("0")
    print("working", flush=True)
    time.sleep(60)

run_stage(counting(run=hang), RuntimeConfig(root=sys.argv[1]))
"""


def test_two_runs_at_once_are_refused_and_a_killed_one_resumes(runtime: RuntimeConfig) -> None:
    command = [sys.executable, "-c", KILLED, runtime.root]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "working" not in process.stdout.readline():
            assert process.poll() is None
        with pytest.raises(UserError, match=f"stage count: process {process.pid} is running it"):
            run_stage(counting(), runtime)
        process.kill()
        process.wait()
    deadline = time.monotonic() + 5  # the kernel drops the lock with the process, at once
    finished = run_stage(counting(), runtime)
    assert finished.facts["resumed_at"] == 1
    assert time.monotonic() < deadline
    assert read_record(finished.folder)["resumed"] is True


def test_bad_input_leaves_no_trace(runtime: RuntimeConfig, tmp_path: Path) -> None:
    def refuse(config: CountConfig, inputs: Mapping[str, Any], folder: Path, runtime: RuntimeConfig) -> dict[str, Any]:
        (folder / "empty").mkdir()
        raise UserError("category unicorn: not there")

    with pytest.raises(UserError, match="unicorn"):
        run_stage(counting(run=refuse), runtime)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_message_and_work_is_kept(runtime: RuntimeConfig) -> None:
    def fill(config: CountConfig, inputs: Mapping[str, Any], folder: Path, runtime: RuntimeConfig) -> dict[str, Any]:
        (folder / "0.txt").write_text("0")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="disk is full; make space and run the same command again"):
        run_stage(counting(run=fill), runtime)
    assert (partial_dir(counting(), runtime) / "0.txt").exists()


def test_too_little_space_is_refused_before_work(runtime: RuntimeConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="GB needed"):
        run_stage(counting(run=fail, space_bytes=10**18), runtime)
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_of_another_kind_is_refused(runtime: RuntimeConfig, tmp_path: Path) -> None:
    run_stage(counting(), runtime)
    with pytest.raises(UserError, match="holds a Shards, not a Checkpoint"):
        load_artifact(published_dir(counting(), runtime), Checkpoint)
    with pytest.raises(UserError, match=r"holds no artifact\.json"):
        load_artifact(tmp_path, Checkpoint)


def test_an_external_dataset_is_its_content(tmp_path: Path) -> None:
    for name in ("one", "two"):
        category = tmp_path / name / "apple"
        (category / "set_lists").mkdir(parents=True)
        (category / "frame_annotations.jgz").write_bytes(b"frames")
        (category / "set_lists" / "set_lists_all.json").write_text(json.dumps({}))
        (category / f"{name}.jpg").write_bytes(b"images are not looked at")
    one, two = external_dataset(tmp_path / "one"), external_dataset(tmp_path / "two")
    assert one.fingerprint == two.fingerprint
    assert one.data == tmp_path / "one"
    (tmp_path / "two" / "apple" / "frame_annotations.jgz").write_bytes(b"other frames")
    assert external_dataset(tmp_path / "two").fingerprint != one.fingerprint


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        external_dataset(tmp_path / "missing")
    with pytest.raises(UserError, match="not in CO3Dv2 layout"):
        external_dataset(tmp_path)


def test_large_results_may_lie_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = RuntimeConfig(root=str(tmp_path / "runs"), data_root=str(tmp_path / "data"))
    stage = counting()
    folder = tmp_path / "data/count" / stage.fingerprint
    folder.mkdir(parents=True)
    (folder / "0.txt").write_text("0")  # what an attempt from another machine left there
    made = run_stage(stage, runtime)
    assert "count  resumes" in capsys.readouterr().out
    assert made.data == folder
    assert made.facts == {"resumed_at": 1, "count": 3, "data": str(folder)}
    assert sorted(path.name for path in folder.iterdir()) == ["0.txt", "1.txt", "2.txt"]
    assert [path.name for path in made.folder.iterdir()] == ["artifact.json"]
    assert load_artifact(made.folder, Shards) == made
    with pytest.raises(UserError, match=r"stage count: \S+ has no dataset.json any more; restore it, or delete \S+"):
        run_stage(stage, runtime)
    (folder / "dataset.json").touch()
    assert run_stage(stage, runtime) == made
    small = run_stage(counting(kind=Checkpoint, name="small"), runtime)
    assert small.data == small.folder
    assert small.folder.is_relative_to(runtime.root_dir)
    with pytest.raises(UserError, match=r"address 'gs://bucket': name a folder, or s3://bucket/folder"):
        RuntimeConfig(data_root="gs://bucket")
