"""MLflow's SQLite file: made once, looked at before it is used, and brought along with its folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest

from infra.addresses import sqlite_address
from infra.errors import UserError
from infra.tracking import database as mlflow_database
from infra.tracking.experiment import Tracking
from infra.tracking.tags import FINGERPRINT_TAG
from tests.support.paths import CHECKOUT
from tests.unit.infra.test_addresses import ODD_NAMES

# What a stage does: look at the store, begin its run (or find it), log a file. Prints the run's id.
STAGE = """
import sys
from infra.tracking.experiment import Tracking
tracking = Tracking(sys.argv[1])
tracking.check()
run = tracking.start("train", tags={"viewdiff.fingerprint": sys.argv[2]})
run.log_text(sys.argv[3], "text.txt")
run.log_metrics({"loss": 1.0}, step=1)
print(run.id)
"""


def begin_stage(database: Path, *arguments: str) -> subprocess.Popen[str]:
    """A process that works in the store."""
    command = [sys.executable, "-c", STAGE, sqlite_address(database), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=CHECKOUT, stdout=pipe, stderr=pipe, text=True)


def run_id(process: subprocess.Popen[str]) -> str:
    """What it printed, once it has ended well."""
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return out.strip()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with one run."""
    path = tmp_path_factory.mktemp("made") / "mlflow.db"
    Tracking(sqlite_address(path)).start("train", tags={FINGERPRINT_TAG: "first"})
    return path


@pytest.fixture
def database(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copy(made, tmp_path / "mlflow.db"))


def change(database: Path, *statements: str) -> None:
    """Carry out SQL."""
    with closing(sqlite3.connect(database)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def test_processes_that_begin_at_once_make_one_database(tmp_path: Path) -> None:
    database = tmp_path / "root" / "mlflow.db"
    processes = [begin_stage(database, f"run {number}", "text") for number in range(2)]
    ids = {run_id(process) for process in processes}
    with closing(sqlite3.connect(database)) as connection:
        assert {row[0] for row in connection.execute("SELECT run_uuid FROM runs")} == ids
        assert connection.execute("SELECT count(*) FROM experiments WHERE name = 'viewdiff'").fetchone() == (1,)
    assert len(ids) == 2
    assert {path.name for path in database.parent.iterdir()} == {"mlflow.db", ".mlflow.db.lock", "mlartifacts"}


def test_a_kill_while_it_is_made_leaves_nothing_in_its_place(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    process = begin_stage(database, "killed", "text")
    deadline = time.monotonic() + 120
    while not any(path.stat().st_size > 50_000 for path in tmp_path.glob(".mlflow.db.*.new")):  # some tables are there
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not database.exists()
    Tracking(sqlite_address(database)).check()
    assert run_id(begin_stage(database, "again", "text"))
    assert list(tmp_path.glob(".mlflow.db.*.new*")) == []


def test_a_file_with_nothing_in_it_is_new(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    database.touch()
    tracking = Tracking(sqlite_address(database))
    tracking.check()
    assert database.stat().st_size == 0
    tracking.start("train", tags={FINGERPRINT_TAG: "a"})
    tracking.check()
    assert not tracking.is_new_database()


HALF_MADE = ("DELETE FROM experiments", "DELETE FROM runs")


@pytest.mark.parametrize(
    ("statements", "reason"),
    [
        ((*HALF_MADE, "CREATE TABLE _alembic_tmp_tags (x)"), r"is half made.*nothing is recorded.*mv .*\.broken"),
        ((*HALF_MADE, "UPDATE alembic_version SET version_num = '451aebb31d03'"), r"is half made.*mv "),
        ((*HALF_MADE, "DROP TABLE tags"), r"is half made.*mv "),
        (("DROP TABLE tags",), r"is damaged: it lacks tags; restore it .*mv .*recorded in it is lost"),
        (("DROP TABLE experiments",), "is damaged: it lacks experiments;"),
        (("CREATE TABLE _alembic_tmp_tags (x)",), "is damaged: it lacks the end of an upgrade;"),
        (("DELETE FROM alembic_version",), "is damaged"),
        (("UPDATE alembic_version SET version_num = '451aebb31d03'",), r"older MLflow.*mlflow db upgrade sqlite:///"),
        (("UPDATE alembic_version SET version_num = 'ffffffffffff'",), r"newer MLflow.*--tracking-uri"),
    ],
)
def test_what_is_wrong_with_the_tables_is_said(statements: tuple[str, ...], reason: str, database: Path) -> None:
    change(database, "PRAGMA foreign_keys = OFF", *statements)
    before = database.read_bytes()
    with pytest.raises(UserError, match=reason) as refusal:
        Tracking(sqlite_address(database)).check()
    assert str(database) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert database.read_bytes() == before


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_said_to_be_damaged(share: float, database: Path) -> None:
    content = database.read_bytes()
    database.write_bytes(content[: max(50, int(len(content) * share))])
    with pytest.raises(UserError, match=r"is no whole SQLite database .*; restore it from a copy, or put it aside"):
        Tracking(sqlite_address(database)).check()


def test_other_things_in_its_place_are_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database at all, only some text that is long enough to be looked at" * 20)
    (tmp_path / "folder").mkdir()
    change(tmp_path / "other", "CREATE TABLE bookmarks (x)")
    for name, reason in (
        ("text", "is no whole SQLite database"),
        ("folder", "is a folder"),
        ("other", "is a database of another program"),
    ):
        tracking = Tracking(sqlite_address(tmp_path / name))
        for call in (tracking.check, lambda tracking=tracking: tracking.start("train", tags={})):
            with pytest.raises(UserError, match=reason):
                call()


def test_one_that_another_program_holds_is_said_to_be_held(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_database, "_BUSY_SECONDS", 0.1)
    with closing(sqlite3.connect(database)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match="is held by another program"):
            Tracking(sqlite_address(database)).check()


@pytest.mark.parametrize("denied", ["mlflow.db", "."])
@pytest.mark.parametrize("is_empty", [True, False])
def test_one_that_may_not_be_written_is_named(
    denied: str, is_empty: bool, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_empty:
        database.write_bytes(b"")
    monkeypatch.setattr(os, "access", lambda path, mode: path != database.parent / denied)
    with pytest.raises(UserError, match=rf"^{database.parent / denied}: no permission to write .*; change its owner"):
        Tracking(sqlite_address(database)).check()


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"its file system cannot lock files .*--tracking-uri"):
        Tracking(sqlite_address(tmp_path / "mlflow.db")).start("train", tags={})
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_root_of_any_name_holds_its_own_store(name: str, made: Path, tmp_path: Path) -> None:
    """The database is a copy of another root's, so it must also be brought along."""
    root = tmp_path / "roots" / name
    root.mkdir(parents=True)
    shutil.copy(made, root / "mlflow.db")
    tracking = Tracking(sqlite_address(root / "mlflow.db"))
    tracking.check()
    run = tracking.start("evaluate", tags={FINGERPRINT_TAG: "here"})
    run.log_text("text", "text.txt")
    assert (root / "mlartifacts" / run.id / "artifacts" / "text.txt").read_text() == "text"
    assert [item.path for item in run.client.list_artifacts(run.id)] == ["text.txt"]
    assert [path.name for path in (tmp_path / "roots").iterdir()] == [name]
    with closing(sqlite3.connect(root / "mlflow.db")) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (2,)


@pytest.mark.parametrize("is_moved", [False, True], ids=["copied", "moved"])
def test_a_copied_or_moved_root_writes_below_itself_and_finds_its_old_files(is_moved: bool, tmp_path: Path) -> None:
    first, second = tmp_path / "a b#1" / "mlflow.db", tmp_path / "second?" / "mlflow.db"
    run = run_id(begin_stage(first, "one", "of the first"))
    if is_moved:
        first.parent.rename(second.parent)
    else:
        shutil.copytree(first.parent, second.parent)
    assert run_id(begin_stage(second, "one", "of the second")) == run
    text = Path("mlartifacts") / run / "artifacts" / "text.txt"
    assert (second.parent / text).read_text() == "of the second"
    assert first.parent.exists() != is_moved
    if not is_moved:
        assert (first.parent / text).read_text() == "of the first"
        assert set(addresses(first)) == {first.parent / "mlartifacts", (first.parent / text).parent}
    assert set(addresses(second)) == {second.parent / "mlartifacts", (second.parent / text).parent}


def addresses(database: Path) -> list[Path]:
    """Where the experiment and its run say that their files are."""
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(
            "SELECT artifact_location FROM experiments WHERE name = 'viewdiff' UNION SELECT artifact_uri FROM runs"
        ).fetchall()
    return [Path(url2pathname(urlsplit(address).path)) for (address,) in rows]


def test_a_database_that_was_copied_without_its_files_says_so(tmp_path: Path) -> None:
    first, second = tmp_path / "first" / "mlflow.db", tmp_path / "second" / "mlflow.db"
    run_id(begin_stage(first, "one", "of the first"))
    second.parent.mkdir()
    shutil.copy(first, second)
    _, error = begin_stage(second, "two", "of the second").communicate(timeout=300)
    assert f"{first.parent / 'mlartifacts'} was not copied with it: copy that folder to {second.parent}" in error


def test_models_and_versions_follow_their_root(database: Path) -> None:
    """What the registry says of files, and what lies elsewhere on purpose."""
    change(database, "UPDATE experiments SET artifact_location = 'file:///old/mlartifacts' WHERE name = 'viewdiff'")
    change(database, "UPDATE runs SET artifact_uri = 'file:///old/mlartifacts/r/artifacts'")
    model = "INSERT INTO model_versions (name, version, source, storage_location) VALUES ('m', {}, '{}', '{}')"
    change(
        database, "PRAGMA foreign_keys = OFF", model.format(1, *["file:///old/mlartifacts/models/m-1/artifacts"] * 2)
    )
    change(
        database, model.format(2, *["file:///old/mlartifacts-2/m-2"] * 2), model.format(3, *["s3://b/mlartifacts"] * 2)
    )
    change(database, "INSERT INTO experiments (name, artifact_location) VALUES ('bucket', 's3://team/mlartifacts')")
    Tracking(sqlite_address(database)).start("train", tags={})
    new = (database.parent / "mlartifacts").as_uri()
    with closing(sqlite3.connect(database)) as connection:
        versions = connection.execute("SELECT source, storage_location FROM model_versions ORDER BY version").fetchall()
        run = connection.execute("SELECT artifact_uri FROM runs WHERE name = 'train'").fetchall()
        bucket = connection.execute("SELECT artifact_location FROM experiments WHERE name = 'bucket'").fetchone()
    assert versions == [
        (f"{new}/models/m-1/artifacts",) * 2,
        ("file:///old/mlartifacts-2/m-2",) * 2,
        ("s3://b/mlartifacts",) * 2,
    ]
    assert (f"{new}/r/artifacts",) in run
    assert bucket == ("s3://team/mlartifacts",)


def test_a_root_that_is_reached_by_a_link_is_not_taken_for_moved(tmp_path: Path, made: Path) -> None:
    (tmp_path / "root" / "mlartifacts").mkdir(parents=True)
    shutil.copy(made, tmp_path / "root" / "mlflow.db")
    Tracking(sqlite_address(tmp_path / "root" / "mlflow.db")).start("train", tags={})
    before = addresses(tmp_path / "root" / "mlflow.db")
    (tmp_path / "link").symlink_to(tmp_path / "root")
    Tracking(sqlite_address(tmp_path / "link" / "mlflow.db")).start("train", tags={FINGERPRINT_TAG: "by the link"})
    assert set(addresses(tmp_path / "root" / "mlflow.db")) >= set(before)


def test_processes_that_log_at_once_lose_nothing(database: Path) -> None:
    Tracking(sqlite_address(database)).start("train", tags={})  # else it tells that it was copied
    program = (
        "import sys; from infra.tracking.experiment import Tracking\n"
        "run = Tracking(sys.argv[1]).start(sys.argv[2], tags={'viewdiff.fingerprint': sys.argv[2]})\n"
        "for step in range(60):\n"
        "    run.log_metrics({'loss': step, 'psnr': step}, step=step)\n"
        "    run.set_tags({'at': str(step)})\n"
        "import json; print(json.dumps(run.last_step('loss')))"
    )
    command = [sys.executable, "-c", program, sqlite_address(database)]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen([*command, name], cwd=CHECKOUT, stdout=pipe, stderr=pipe, text=True) for name in "ab"]
    for process in processes:
        out, error = process.communicate(timeout=300)
        assert (json.loads(out or "null"), error) == (59, "")
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM metrics WHERE key = 'loss'").fetchone() == (120,)
