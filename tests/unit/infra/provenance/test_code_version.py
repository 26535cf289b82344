"""infra/provenance/code_version.py: results say which commit made them, also where there is no git."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import pytest
import torch

from infra.log import get_logger
from infra.provenance import code_version
from infra.provenance.code_version import git_commit, package_versions


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What is said; as in a process of its own."""
    get_logger("checkout")  # its first call turns propagation off
    monkeypatch.setattr(logging.getLogger("viewdiff"), "propagate", True)
    code_version._tell_that_unknown.cache_clear()
    yield caplog
    code_version._tell_that_unknown.cache_clear()


def git_says(monkeypatch: pytest.MonkeyPatch, answer: str | None) -> None:
    def run(*command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        if answer is None:
            raise FileNotFoundError("git")
        return subprocess.CompletedProcess(command, 0, stdout=answer)

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.parametrize(
    ("git", "variable", "commit"),
    [("abc+\n", "", "abc+"), ("abc\n", "def", "abc"), ("", "def\n", "def"), (None, "def", "def")],
)
def test_git_goes_before_the_variable(
    git: str | None, variable: str, commit: str, warnings: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    git_says(monkeypatch, git)
    monkeypatch.setenv("VIEWDIFF_COMMIT", variable)
    assert git_commit() == commit
    assert not warnings.text


@pytest.mark.parametrize("git", ["", None])
def test_without_either_it_is_said_once(
    git: str | None, warnings: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    git_says(monkeypatch, git)
    monkeypatch.delenv("VIEWDIFF_COMMIT", raising=False)
    assert git_commit() is None
    assert git_commit() is None
    assert [record.getMessage().count("VIEWDIFF_COMMIT is not set") for record in warnings.records] == [1]


def test_versions_are_of_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    found = metadata.version

    def without_triton(name: str) -> str:
        if name == "triton":
            raise metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(metadata, "version", without_triton)
    monkeypatch.setattr(torch.version, "cuda", None)
    versions = package_versions()
    assert {"python", "torch", "numpy", "peft", "safetensors"} <= versions.keys()
    assert not {"triton", "cuda"} & versions.keys()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert package_versions()["cuda"] == "13.0"
