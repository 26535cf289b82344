"""The pages name what there is: every room in the code tour, every page in the index, no command that is refused,
no file or link to nowhere.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import arguments as cli_arguments
from pipelines.cli.arguments import parse_run
from pipelines.cli.main import COMMANDS
from tests.support.paths import CHECKOUT

DOCS = CHECKOUT / "docs"
PARSERS: dict[str, Callable[..., Any]] = {
    name: getattr(cli_arguments, f"parse_{name}")
    for name in ("inspect", "import", "generate", "compare", "plan", "profile")
}
PAGES = (CHECKOUT / "README.md", *sorted(DOCS.rglob("*.md")))


def test_the_tour_names_every_room_and_no_other() -> None:
    packages = ("pipelines", "preprocessing", "model", "infra")
    inits = [path for package in packages for path in (CHECKOUT / package).rglob("*/__init__.py")]
    rooms = {f"{path.parent.relative_to(CHECKOUT).as_posix()}/" for path in inits}
    assert set(re.findall(r"^\| `([\w/]+)`", (DOCS / "code-tour.md").read_text(), re.MULTILINE)) == rooms


def test_files_that_pages_name_exist() -> None:
    named = [
        (page, name)
        for page in PAGES
        for name in re.findall(r"`((?:pipelines|preprocessing|model|infra)/[\w/.-]+)`", page.read_text())
    ]
    assert len(named) > 20
    assert [f"{page.name}: {name}" for page, name in named if not (CHECKOUT / name).exists()] == []


def test_the_index_links_every_page() -> None:
    linked = {(DOCS / link).resolve() for link in _links(DOCS / "README.md")}
    assert {path for path in DOCS.rglob("*.md") if path.name != "README.md"} - linked == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert [link for link in _links(page) if not (page.parent / link).exists()] == []


def _blocks(page: Path) -> list[str]:
    """The indented and the fenced lines of a page; those that end in a backslash are joined with the next."""
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    fenced = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [*re.findall(r"^ {4}(.*)$", text, re.MULTILINE), *"".join(fenced).splitlines()]


def _commands(page: Path) -> list[list[str]]:
    """Arguments of every `viewdiff ...` and `python -m pipelines.cli ...` among them."""
    found = [re.search(r"(?:\bviewdiff|-m pipelines\.cli) ([a-z]+ .*)$", line) for line in _blocks(page)]
    return [shlex.split(match[1], comments=True) for match in found if match]


@pytest.mark.parametrize("page", [page for page in PAGES if _commands(page)], ids=lambda page: page.name)
def test_the_command_line_accepts_what_pages_show(page: Path) -> None:
    """As far as reading the arguments goes: no option is unknown, no argument is missing."""
    for command, *arguments in _commands(page):
        assert command in COMMANDS
        PARSERS.get(command, partial(parse_run, command))(arguments, description="")


def test_python_that_pages_show_finds_what_it_imports() -> None:
    lines = [line for page in PAGES for line in _blocks(page) if line.startswith(("from ", "import "))]
    assert len(lines) >= 3
    for line in lines:
        exec(line, {})


def _links(page: Path) -> list[str]:
    """Those to files of this checkout."""
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    return [link for link in links if "://" not in link]
