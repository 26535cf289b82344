"""The page of `viewdiff compare`: curves over each other, and the tables of the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pipelines.experiments.tables import Compared, Table, metric_names
from pipelines.pages.charts import legend, overlaid_curves
from pipelines.pages.page import page, section, table


def comparison_page(
    columns: Sequence[str], compared: Sequence[Compared], found: Sequence[Table], *, source: str
) -> str:
    """Self-contained HTML. `columns` are the runs' names, `source` says where their record is."""
    newest = max(item.run.started for item in compared)
    return page(
        title=f"{len(compared)} trainings compared",
        eyebrow=f"viewdiff · {newest:%Y-%m-%d}",
        lead=" · ".join(escape(name) for name in columns),
        content=[_curves(columns, compared), *(_section(columns, item) for item in found)],
        footer=f"From the record in MLflow at <code>{escape(source)}</code>",
    )


def _curves(columns: Sequence[str], compared: Sequence[Compared]) -> str:
    charts = []
    for name in metric_names(compared):
        lines = {
            place: (item.histories[name].steps, item.histories[name].values)
            for place, item in enumerate(compared)
            if name in item.histories and len(item.histories[name].steps) > 1
        }
        if lines:
            charts.append(overlaid_curves(name.replace("_", " ").replace("/", ", "), lines, columns))
    note = "Smoothed: a step's loss depends on what is in its batch."
    return section("Curves", legend(columns), f'<div class="curves">{"".join(charts)}</div>', note=note)


def _section(columns: Sequence[str], item: Table) -> str:
    if not item.rows:
        return section(item.title, note=item.note)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    rows = []
    for row in item.rows:
        marks = [' class="best"' if place == row.best else "" for place in range(len(columns))]
        cells = "".join(f"<td{mark}>{escape(cell)}</td>" for mark, cell in zip(marks, row.cells, strict=True))
        rows.append(f'<tr><th scope="row">{escape(row.name)}</th>{cells}</tr>')
    return section(item.title, table(f'<tr><th scope="col"></th>{head}</tr>', rows, label=item.title))
