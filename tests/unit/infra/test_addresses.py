"""Paths and names in addresses, and addresses as people see them."""

from __future__ import annotations

import ast
import logging
import re
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from infra.addresses import artifact_name, require_name, shown, shown_address, sqlite_address, sqlite_path
from infra.console import exit_code
from infra.errors import UserError
from infra.log import get_logger
from infra.storage.files import open_path
from pipelines.spine.runtime import RuntimeConfig
from tests.support.paths import CHECKOUT

ODD_NAMES = ("plain", "with space", "a?b", "a#b", "50%", "a%3Fb", "a@b:c", "Bär 熊", "a;b&c=d'e\"f", "a+b")
SECRET = "pl4nted"


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_database_lies_where_its_path_says(name: str, tmp_path: Path) -> None:
    path = tmp_path / name / "mlflow.db"
    address = sqlite_address(path)
    assert make_url(address).database == str(path)  # what SQLAlchemy opens
    assert sqlite_path(address) == path
    assert RuntimeConfig(root=str(tmp_path / name)).tracking == address


def test_a_plain_path_stays_readable() -> None:
    assert sqlite_address(Path("/runs/my demo/mlflow.db")) == "sqlite:////runs/my demo/mlflow.db"


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("sqlite:///runs/mlflow.db", Path.cwd() / "runs" / "mlflow.db"),
        ("sqlite+pysqlite:////data/mlflow.db?timeout=3", Path("/data/mlflow.db")),
        ("sqlite://", None),
        ("sqlite:///:memory:", None),
        ("sqlite:///file:/data/mlflow.db?uri=true", None),
        ("http://127.0.0.1:5000", None),
        ("postgresql://host/mlflow.db", None),
    ],
)
def test_the_file_of_an_address(address: str, path: Path | None) -> None:
    assert sqlite_path(address) == path


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("http://anna:pl4nted@127.0.0.1:5000/mlflow", "http://127.0.0.1:5000/mlflow"),
        ("https://pl4nted@host", "https://host"),
        ("postgresql+psycopg://anna:pl4nted@host:5432/db", "postgresql+psycopg://host:5432/db"),
        ("postgresql://anna:a/?#@pl4nted@host/db", "postgresql://host/db"),
        ("mysql://host/db?password=pl4nted&ssl=1", "mysql://host/db"),
        ("MLflow at http://a:pl4nted@h:1 is away (http://h/?token=pl4nted); go on", "MLflow at http://h:1 is away "
         "(http://h/); go on"),
        ("'https://anna:pl4nted@host'", "'https://host'"),
        ("sqlite:////runs/anna@home/mlflow.db", "sqlite:////runs/anna@home/mlflow.db"),
        ("sqlite+pysqlite:////runs/a%3Fb/mlflow.db", "sqlite+pysqlite:////runs/a%3Fb/mlflow.db"),
        ("s3://bucket/apple@home/1", "s3://bucket/apple@home/1"),
        ("s3://key:pl4nted@bucket/1", "s3://bucket/1"),
        ("s3://AKIA:pl4n/ted@bucket/key", "s3://bucket/key"),
        ("s3://pl4nted@bucket/apple@home", "s3://bucket/apple@home"),
        ("http://anna:7/pl4nted@host/path", "http://host/path"),
        ("http://host/path/@scope/pkg", "http://host/path/@scope/pkg"),
        ("no address: photo:1@2 what?", "no address: photo:1@2 what?"),
    ],
)  # fmt: skip
def test_what_is_secret_in_an_address_is_not_shown(text: str, seen: str) -> None:
    assert shown(text) == seen


@pytest.mark.parametrize(
    ("address", "seen"),
    [
        ("postgresql://anna:pl4 nted@host/db", "postgresql://host/db"),
        ("postgresql://anna:a/ ?#@pl4nted@host/db?options=-c pl4nted", "postgresql://host/db"),
        ("s3://AKIA:pl4n/ted@bucket/key", "s3://bucket/key"),
        ("http://host/path/@scope/pkg?token=pl4nted", "http://host/path/@scope/pkg"),
        ("sqlite:////runs/anna@home/my demo/mlflow.db", "sqlite:////runs/anna@home/my demo/mlflow.db"),
        ("databricks", "databricks"),
    ],
)
def test_an_address_by_itself_may_hold_blanks(address: str, seen: str) -> None:
    assert shown_address(address) == seen
    assert shown(seen) == seen  # what is said of it is looked through once more


def test_a_message_and_a_line_of_the_log_hide_it(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise UserError(f"MLflow at http://anna:{SECRET}@host cannot be reached")

    assert exit_code("viewdiff", fail) == 2
    assert capsys.readouterr().err == "viewdiff: error: MLflow at http://host cannot be reached\n"
    get_logger("train")
    handlers = logging.getLogger("viewdiff").handlers  # and pytest's, of types derived from this one
    (handler,) = (handler for handler in handlers if type(handler) is logging.StreamHandler)
    record = logging.LogRecord("viewdiff.train", logging.INFO, "", 1, "at %s", (f"http://anna:{SECRET}@host",), None)
    assert handler.format(record).endswith("at http://host")


@pytest.mark.parametrize(
    "address",
    [f"http://anna:{SECRET}@host/captures", f"s3://anna:{SECRET}@bucket/captures", f"s3://AKIA:se/{SECRET}@bucket/key"],
)
def test_an_address_that_is_refused_is_named_without_it(address: str) -> None:
    with pytest.raises(UserError, match="address") as refusal:
        open_path(address)
    assert SECRET not in str(refusal.value)


def test_names_become_parts_of_paths_that_stay_different() -> None:
    names = [
        "sequence#3 from 5",
        "sequence#3 from 6",
        "a/b",
        "a=2Fb",
        "a\\b",
        "a?b",
        "a%23",
        "a=23",
        "a#",
        "..",
        ".",
        "",
    ]
    made = [artifact_name(name) for name in names]
    assert made[0] == "sequence=233 from 5"
    assert len(set(made)) == len(names)
    assert all(re.fullmatch(r"[\w ,.()=-]*", name) for name in made)
    assert {".", ".."}.isdisjoint(made)
    assert artifact_name("teddybear--34_1403_4393 (copy).v2") == "teddybear--34_1403_4393 (copy).v2"
    assert artifact_name("Bär--熊") == "Bär--熊"


@pytest.mark.parametrize("name", ["", "   ", "two\nlines", "\x1b[31mred", "x" * 251])
def test_a_name_is_one_line(name: str) -> None:
    with pytest.raises(UserError, match="one line of 1 to 250 characters"):
        require_name("--run-name", name)
    with pytest.raises(UserError, match="--run-name"):
        RuntimeConfig(run_name=name)


def test_no_message_names_an_address_as_it_is() -> None:
    """In an f-string of the code an MLflow store's address stands only within `shown_address(...)`."""
    found = []
    for folder in ("infra", "pipelines", "preprocessing"):
        for path in sorted((CHECKOUT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Attribute | ast.Name):
                    name = ast.unparse(node.value)
                    if re.search(r"(\.uri|\btracking_uri|runtime\.tracking)$", name) or name == "uri":
                        found.append(f"{path.relative_to(CHECKOUT)}:{node.lineno} {name}")
    assert found == []
