"""The pages name what there is: every module in README's map, every page in the index, no link to nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
DOCS = CHECKOUT / "docs"
PAGES = (CHECKOUT / "README.md", *sorted(DOCS.rglob("*.md")))


@pytest.mark.parametrize("package", ["model", "preprocessing", "infra", "pipelines"])
def test_the_map_names_every_module(package: str) -> None:
    section = (CHECKOUT / "README.md").read_text().split(f"\n**{package}/**")[1].split("\n**")[0]
    missing = {path.name for path in (CHECKOUT / package).glob("[!_]*.py")} - set(re.findall(r"`(\w+\.py)`", section))
    assert not missing


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
