"""The pages name what there is: every room in the code tour, every page in the index, no file or link to nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.paths import CHECKOUT

DOCS = CHECKOUT / "docs"
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


def _links(page: Path) -> list[str]:
    """Those to files of this checkout."""
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    return [link for link in links if "://" not in link]
