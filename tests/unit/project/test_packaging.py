"""A wheel would hold every module, and every file that modules read."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from pathlib import Path

from tests.support.paths import CHECKOUT

SETUPTOOLS = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["setuptools"]
TOP = ("infra", "model", "preprocessing", "pipelines")
FOR_CLUSTERS = {"infra/deploy/docker", "infra/deploy/ray", "infra/deploy/k8s"}  # files for people, used from a checkout


def folders() -> list[Path]:
    below = [folder for top in TOP for folder in (CHECKOUT / top).rglob("*")]
    # A folder that was moved away may leave what Python compiled of it.
    found = [folder for folder in below if folder.is_dir() and any(path.is_file() for path in folder.glob("*"))]
    found = [folder for folder in found if folder.name != "__pycache__"]
    return [*(CHECKOUT / top for top in TOP), *found]


def test_every_package_is_found() -> None:
    patterns = SETUPTOOLS["packages"]["find"]["include"]
    for folder in folders():
        name = folder.relative_to(CHECKOUT).as_posix()
        assert (folder / "__init__.py").is_file() == (name not in FOR_CLUSTERS), name
        assert any(fnmatch(name.replace("/", "."), pattern) for pattern in patterns), name


def test_nothing_else_is_found() -> None:
    for name in ("tests", "tests.unit", "benchmarks"):
        assert not any(fnmatch(name, pattern) for pattern in SETUPTOOLS["packages"]["find"]["include"])


def test_every_other_file_of_a_package_is_named() -> None:
    for folder in folders():
        name = folder.relative_to(CHECKOUT).as_posix()
        if name in FOR_CLUSTERS:
            continue
        patterns = SETUPTOOLS["package-data"].get(name.replace("/", "."), [])
        for path in folder.iterdir():
            if path.is_file() and path.suffix != ".py":
                assert any(fnmatch(path.name, pattern) for pattern in patterns), path
