"""A process without a home folder is told so, before libraries fail in ways of their own."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from types import SimpleNamespace

import pytest

from infra.console import exit_code
from infra.errors import UserError
from infra.system.home import require_home
from pipelines.cli import main


@pytest.fixture(autouse=True)
def of_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The home of the user that runs this."""
    monkeypatch.setenv("HOME", "")  # so that it is put back
    monkeypatch.setattr(pwd, "getpwuid", lambda user: SimpleNamespace(pw_dir=str(tmp_path)))
    return tmp_path


def unknown_user(user: int) -> None:
    raise KeyError(f"getpwuid(): uid not found: {user}")


def test_a_home_that_is_there_is_kept(monkeypatch: pytest.MonkeyPatch, of_user: Path) -> None:
    (of_user / "other").mkdir()
    monkeypatch.setenv("HOME", str(of_user / "other"))
    require_home()
    assert os.environ["HOME"] == str(of_user / "other")


def test_without_one_it_is_the_users(monkeypatch: pytest.MonkeyPatch, of_user: Path) -> None:
    monkeypatch.delenv("HOME")
    require_home()
    assert os.environ["HOME"] == str(of_user)


def test_none_at_all_is_a_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown_user)
    with pytest.raises(UserError, match=r"^HOME is not set: .*; set HOME to a folder$"):
        require_home()
    assert exit_code("viewdiff", lambda: main.dispatch(["train", "--root", "~/runs", "--dry-run"])) == 2
    assert capsys.readouterr().err.startswith("viewdiff: error: HOME is not set: ")


def test_one_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, of_user: Path) -> None:
    (of_user / "file").touch()
    for home in (of_user / "none", of_user / "file"):
        monkeypatch.setenv("HOME", str(home))
        with pytest.raises(UserError, match=rf"^HOME={home} is no folder that can be written to: "):
            require_home()
