"""The report in a real browser: nothing is fetched, nothing fails, and dragging turns every object."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from infra.tracking.experiment import Tracking
from pipelines.settings.run import ReportConfig
from pipelines.spine.runtime import RuntimeConfig
from pipelines.stages.report import write_report
from tests.support.browser import Page, browser
from tests.support.evaluated_run import NUM_VIEWS, view_color, write_evaluated_run


@pytest.fixture(scope="module")
def report_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    runtime = RuntimeConfig(root=str(root))
    tracking = Tracking(runtime.tracking)
    run_ids = {name: tracking.start(name, tags={}).id for name in ("train", "evaluate")}
    inputs = write_evaluated_run(root, run_ids)
    facts = write_report(ReportConfig(), inputs, root, runtime)
    assert facts["num_objects"] == 2
    logged = list((root / "mlartifacts").rglob("report.html"))
    assert [path.read_bytes() for path in logged] == [(root / "report.html").read_bytes()]
    return root / "report.html"


@pytest.fixture(scope="module")
def page(report_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def _center(page: Page, selector: str) -> tuple[float, float, float]:
    """Middle of the element on the screen, x and y, and its width; scrolled into view."""
    rectangle = page.evaluate(
        f"(() => {{ const e = document.querySelector('{selector}'); e.scrollIntoView({{block: 'center'}});"
        " const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2, r.width]; })()"
    )
    return tuple(rectangle)  # type: ignore[return-value]


def _shown(page: Page, pane: str) -> tuple[int, ...]:
    """Colour of the picture that a pane of the first object shows, from a screenshot."""
    x, y, _ = _center(page, f'.object .window:has(img[alt^="{pane}"])')
    screenshot = np.frombuffer(page.screenshot(), np.uint8)
    pixel = cv2.imdecode(screenshot, cv2.IMREAD_COLOR)[round(y), round(x), ::-1]
    return tuple(int(value) for value in pixel)


def _view(page: Page) -> int:
    """The view that generated picture and truth both show."""
    generated, truth = _shown(page, "Generated"), _shown(page, "Truth")
    views = [view for view in range(NUM_VIEWS) if _alike(generated, view_color(view))]
    assert views, generated
    assert _alike(truth, view_color(views[0], truth=True))
    return views[0]


def _alike(color: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Views differ by 40 grey levels; a screen's colour profile may move them by a few."""
    return max(abs(a - b) for a, b in zip(color, other, strict=True)) <= 8


@pytest.mark.parametrize("width", [1280, 390])
def test_dragging_turns_the_object(page: Page, report_path: Path, width: int) -> None:
    page.open(report_path, width=width)
    assert _view(page) == 0
    x, y, pane = _center(page, ".object .window.drag")
    page.drag((x, y), (x - pane * 0.4, y))  # to the left: two of five views on
    assert _view(page) == 2
    assert page.evaluate("document.querySelector('.object input').value") == "2"
    assert "azimuth 180°" in page.evaluate("document.querySelector('.object .where').textContent")
    page.drag((x, y), (x + pane * 0.6, y))  # back, and over the first view to the last
    assert _view(page) == NUM_VIEWS - 1
    assert page.messages == []


def test_keys_turn_the_object_and_go_around(page: Page, report_path: Path) -> None:
    page.open(report_path, width=1280)
    page.evaluate("document.querySelector('.object input').focus()")
    page.press("ArrowRight")
    assert _view(page) == 1
    for _ in range(2):
        page.press("ArrowLeft")
    assert _view(page) == NUM_VIEWS - 1
    assert "azimuth 324°" in page.evaluate("document.querySelector('.object input').getAttribute('aria-valuetext')")
    assert page.messages == []


def test_other_objects_stay(page: Page, report_path: Path) -> None:
    page.open(report_path, width=1280)
    x, y, pane = _center(page, ".object .window.drag")
    page.drag((x, y), (x - pane * 0.4, y))
    views = "[...document.querySelectorAll('.object')].map(e => e.style.getPropertyValue('--view'))"
    assert page.evaluate(views) == ["2", "0", "0"]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_the_screen_and_loads_every_picture(
    page: Page, report_path: Path, width: int, dark: bool
) -> None:
    page.open(report_path, width=width, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0 && i.alt)")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == dark
    assert page.messages == []
