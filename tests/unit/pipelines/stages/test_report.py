"""The page's building blocks; how the page behaves is tested in a browser, in tests/integration."""

from __future__ import annotations

import base64
import json
import re
from contextlib import nullcontext
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.evaluation.scoring import OBJECTS_SCHEMA
from pipelines.generation.pictures import ObjectPictures, color_depth, grid, pictures_path
from pipelines.pages.charts import curve, strip_chart
from pipelines.pages.page import ObjectCard, data_url, folded, objects, page, table
from pipelines.pages.run import curves, read_chain, records_section, rejected_section
from pipelines.settings.run import ReportConfig
from pipelines.spine.runtime import RuntimeConfig
from pipelines.stages import report
from tests.support.evaluated_run import CAPTION, NUM_STEPS, NUM_VIEWS, SIDE, write_evaluated_run

RUN_IDS = {"train": "a" * 32, "evaluate": "b" * 32}
VOID = {"meta", "link", "img", "input", "br"}


class _Nesting(HTMLParser):
    """Fails where an element is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass  # of SVG

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_nesting(html: str) -> None:
    parser = _Nesting()
    parser.feed(html)
    assert parser.open == []


@pytest.fixture
def pictures(tmp_path: Path) -> ObjectPictures:
    evaluation = write_evaluated_run(tmp_path / "run", RUN_IDS)["evaluation"]
    return ObjectPictures.load(pictures_path(evaluation.folder / "pictures", "apple", "12_3_4"))


def test_pictures_come_back_as_saved(tmp_path: Path, pictures: ObjectPictures) -> None:
    path = pictures_path(tmp_path, "a/b", "c")
    assert path.parent == tmp_path  # a name cannot leave the folder
    pictures.save(path)
    read = ObjectPictures.load(path)
    assert read.caption == CAPTION
    assert np.array_equal(read.generated, pictures.generated)
    assert read.truth is not None
    assert np.array_equal(read.truth, pictures.truth)
    assert [item.name for item in tmp_path.iterdir() if item.is_file()] == [path.name]


def test_text_from_outside_is_escaped(pictures: ObjectPictures) -> None:
    html = page(
        title="<i>title</i>",
        eyebrow="<i>",
        lead="",
        content=[
            objects([ObjectCard(title="<b>x</b>", subtitle=pictures.caption, pictures=pictures)]),
            folded("<u>", {"key": "</pre><script>alert(1)</script>"}),
            rejected_section({"num_sequences": 1, "rejected": [{"category": "<s>", "sequence": "", "reason": "<s>"}]}),
            table("", [], label="<s>"),
        ],
        footer="",
    )
    for tag in ("<i>", "<b>", "<u>", "<s>", "alert(1)</script>"):
        assert tag not in html
    assert "a &lt;b&gt;bold&lt;/b&gt; &quot;apple&quot; &amp; more" in html
    check_nesting(html)


def test_the_report_links_to_the_card_of_the_shards() -> None:
    for rejected in ([], [{"category": "apple", "sequence": "a", "reason": "r"}]):
        manifest = {"num_sequences": 1, "rejected": rejected}
        assert "<a " not in rejected_section(manifest)
        assert '<a href="../&lt;x&gt;/card.html">' in rejected_section(manifest, card="../<x>/card.html")


def test_the_page_needs_nothing_else(pictures: ObjectPictures) -> None:
    html = page(title="t", eyebrow="", lead="", content=[objects([ObjectCard(title="", pictures=pictures)])], footer="")
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert "url(" not in html
    assert "@import" not in html


@pytest.mark.parametrize(("side", "kind"), [(16, "png"), (200, "jpeg")])
def test_pictures_are_inline(side: int, kind: str) -> None:
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    image = np.stack(
        [np.tile(ramp, (side, 1)), np.tile(ramp[:, None], (1, side)), np.full((side, side), 90, np.uint8)], -1
    )
    head, data = data_url(image).split(",")
    assert head == f"data:image/{kind};base64"
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    # PNG is exact. JPEG at quality 90 halves the resolution of colour, which moves a smooth ramp by a few levels.
    assert np.abs(decoded.astype(int) - image).max() <= (0 if kind == "png" else 12)


def test_views_are_sorted_around_the_object(pictures: ObjectPictures) -> None:
    html = objects([ObjectCard(title="x", pictures=pictures, view_facts=[f"view {i}" for i in range(NUM_VIEWS)])])
    assert re.findall(r"azimuth (\d+)°", html)[:NUM_VIEWS] == ["36", "108", "180", "252", "324"]
    # The fixture's views, by rising azimuth, are its numbers 1, 4, 3, 0 and 2; facts go with their view.
    assert re.findall(r"view (\d)&quot;", html) == ["1", "4", "3", "0", "2"]
    generated = re.search(r'alt="Generated[^>]*>', html)
    assert generated
    check_nesting(html)


def test_depth_colours_rank_near_to_far() -> None:
    depth = np.linspace(1, 10, 64, dtype=np.float32).reshape(1, 8, 8)
    brightness = color_depth(depth).astype(int).sum(-1).ravel()
    assert (np.diff(brightness) <= 0).mean() > 0.9  # two hues meet in the map, where brightness may waver
    assert brightness[0] > 500 > 100 > brightness[-1]
    assert color_depth(np.ones((2, 4, 4), np.float32)).shape == (2, 4, 4, 3)  # a flat wall has no range


def test_grid_has_a_row_for_everything(pictures: ObjectPictures) -> None:
    height, width, _ = grid(pictures).shape
    assert (height, width) == (3 * (SIDE + 4), (NUM_VIEWS + 1) * (SIDE + 4))


def test_strip_chart_places_values_by_size() -> None:
    html = strip_chart({"ours": ("ours", [12.0, 14.0]), "copy": ("copy", [10.0, 11.0])}, unit="dB")
    assert re.findall(r'<b style="left:([\d.]+)%"', html) == ["75.00", "12.50"]  # means 13 and 10.5 on an axis 10–14
    assert "13.00 <small>dB" in html
    check_nesting(html)


def _points(html: str, kind: str) -> list[tuple[float, float]]:
    found = re.search(rf'class="{kind}" d="M([^"]*)"', html)
    assert found
    return [tuple(map(float, point.split())) for point in found[1].split("L")]  # type: ignore[misc]


@pytest.mark.parametrize("logarithmic", [False, True])
def test_curve_falls_when_the_loss_falls(logarithmic: bool) -> None:
    steps = list(range(1, 1001))
    html = curve("loss", steps, [2 - step / 1000 for step in steps], logarithmic=logarithmic)
    raw, smooth = _points(html, "raw"), _points(html, "smooth")
    assert raw[0][0] == 0
    assert raw[-1][0] == 300
    assert len(raw) <= 400
    heights = [y for _, y in smooth]
    assert heights == sorted(heights)  # y of SVG grows downwards
    # Away from the ends, a straight line is its own mean.
    assert smooth[200][1] == pytest.approx(raw[200][1], abs=1.0)
    check_nesting(html)


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [-1.0, 5.0], [1e-9, 1e9], [0.3, 0.31, 0.305]])
def test_curves_of_odd_values_are_drawn(values: list[float]) -> None:
    for logarithmic in {False, min(values) > 0}:
        html = curve("loss", list(range(len(values))), values, logarithmic=logarithmic)
        assert all(0 <= y <= 150 for _, y in _points(html, "smooth"))
        assert "nan" not in html


def test_all_stages_of_a_run_are_found(tmp_path: Path) -> None:
    inputs = write_evaluated_run(tmp_path, RUN_IDS)
    records = read_chain(list(inputs.values()))
    # The captures are no input of the report: they are found through the shards' record.
    assert [record["stage"] for record in records] == ["synth", "preprocess", "base", "train", "evaluate"]
    charts = curves(inputs["checkpoint"].folder / "metrics.jsonl")
    assert re.findall(r"<figcaption>([^<]*)<", charts) == ["loss", "loss views", "gradient norm"]
    assert f"<span>{NUM_STEPS}</span>" in charts


def test_the_time_of_an_interrupted_stage_is_marked() -> None:
    common = {"fingerprint": "0" * 16, "created": "2026-01-01T00:00", "config": {}, "facts": {}, "seconds": 90.0}
    records = [common | {"stage": "base", "resumed": False}, common | {"stage": "train", "resumed": True}]
    html = records_section(records)
    assert html.count("<td>1 min 30 s</td>") == 1
    assert html.count("<td>1 min 30 s, after a break</td>") == 1


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No MLflow: what a report tells it is of no interest, and what it asks is answered."""
    tracking = SimpleNamespace(
        uri="sqlite:///mlflow.db",
        experiment="viewdiff",
        check=lambda: None,
        answering=nullcontext,
        run_url=lambda run_id: None,
        resume=lambda run_id: SimpleNamespace(log_artifact=lambda path: None),
    )
    monkeypatch.setattr(report, "Tracking", lambda uri: tracking)


def test_failed_objects_are_listed_and_in_no_mean(tmp_path: Path, offline: None) -> None:
    inputs = write_evaluated_run(tmp_path, RUN_IDS)
    evaluation = inputs["evaluation"]
    path, summary_path = evaluation.folder / "objects.parquet", evaluation.folder / "summary.json"
    failed = {
        "category": "apple",
        "sequence": "7",
        "known_frame": 0,
        "target_frames": [1],
        "reason": "frame <0> is bad",
    }
    table = pa.Table.from_pylist([*pq.read_table(path).to_pylist(), failed], schema=OBJECTS_SCHEMA)
    pq.write_table(table, path)
    told = {"num_objects": 3, "num_text_objects": 2, "failed_texts": {"text-1": "ValueError: no such text"}}
    summary_path.write_text(json.dumps(json.loads(summary_path.read_text()) | told))
    report.write_report(ReportConfig(), inputs, tmp_path, RuntimeConfig(root=str(tmp_path)))
    html = (tmp_path / "report.html").read_text()
    assert "2 of 3 unseen objects" in html
    assert "Mean of 2 of 3 objects" in html
    assert '<th scope="row">apple / 7</th><td class="text">frame &lt;0&gt; is bad</td>' in html
    assert '<th scope="row">text-1</th><td class="text">ValueError: no such text</td>' in html
    assert html.count('<figure class="object') == 3  # two objects and a text
    check_nesting(html)


def test_a_report_of_an_evaluation_without_failures_says_nothing_of_them(tmp_path: Path, offline: None) -> None:
    report.write_report(
        ReportConfig(), write_evaluated_run(tmp_path, RUN_IDS), tmp_path, RuntimeConfig(root=str(tmp_path))
    )
    html = (tmp_path / "report.html").read_text()
    assert "2 unseen objects" in html
    assert "Failed" not in html
