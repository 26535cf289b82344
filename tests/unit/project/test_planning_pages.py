"""The pages that are made by a program are what it would make of today's code. Of the long one only parts that take
seconds; all of it is made again by `python -m benchmarks.planning_page`.
"""

from __future__ import annotations

import json

from benchmarks import planning_page, scaling_page
from benchmarks.record import FOLDER, REPOSITORY, table


def test_the_planning_page_is_todays() -> None:
    page = planning_page.PATH.read_text()
    assert page.startswith(planning_page.introduction())
    # The one with a sample for each GPU needs the fewest passes to be counted.
    header, _, row = table(planning_page.HEADER, [planning_page.row("released", 64, 24.0)]).splitlines()
    assert f"\n{header}\n" in page
    assert f"\n{row}\n" in page.split("\n## ")[1]


def test_the_scaling_page_is_todays() -> None:
    assert scaling_page.summary() in (REPOSITORY / "docs" / "scaling.md").read_text()
    path = max(FOLDER.glob("*-scaling.json"))
    page = scaling_page.page(json.loads(path.read_text()), path.with_suffix(".png").name)
    assert page == path.with_suffix(".md").read_text()
