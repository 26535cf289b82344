"""The report's part on how the result was made: stages, settings, loss curves, rejected captures, MLflow runs."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from infra.addresses import shown_address, sqlite_path
from infra.log import format_seconds
from infra.tracking.experiment import Tracking
from pipelines.pages.card import rejected_table
from pipelines.pages.charts import curve
from pipelines.pages.page import folded, section, table
from pipelines.spine.artifacts import RECORD_NAME, Artifact, read_record


def read_chain(artifacts: Sequence[Artifact]) -> list[dict[str, Any]]:
    """Records of the artifacts and of everything below the same root that they were made from, oldest first."""
    records: dict[str, dict[str, Any]] = {}
    waiting = [artifact.folder for artifact in artifacts if (artifact.folder / RECORD_NAME).is_file()]
    while waiting:
        folder = waiting.pop()
        record = read_record(folder)
        if record["fingerprint"] in records:
            continue
        records[record["fingerprint"]] = record
        for source in record["inputs"].values():  # captures that no stage made have no record
            waiting += [path.parent for path in folder.parents[1].glob(f"*/{source['fingerprint']}/{RECORD_NAME}")]
    return sorted(records.values(), key=lambda record: record["created"])


def curves(metrics_path: Path) -> str:
    """Losses and gradient norm over the steps of metrics.jsonl."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for line in metrics_path.read_text(encoding="utf-8").splitlines():
        metrics = json.loads(line)
        for name, value in metrics.items():
            if "loss" in name or "gradient" in name:
                steps, values = series.setdefault(name, ([], []))
                steps.append(metrics["step"])
                values.append(value)
    charts = [
        curve(name.replace("_", " ").replace("/", ", "), *points, logarithmic=min(points[1]) > 0)
        for name, points in series.items()
    ]
    return f'<div class="curves">{"".join(charts)}</div>'


def records_section(records: Sequence[Mapping[str, Any]]) -> str:
    """Stages with their time, and their settings on demand."""
    longest = max(record["seconds"] for record in records)
    head = (
        '<tr><th scope="col">Stage</th><th scope="col">Time</th><th class="bars" scope="col"></th>'
        '<th scope="col">Finished</th><th scope="col">Fingerprint</th></tr>'
    )
    rows = [
        f'<tr><th scope="row">{escape(record["stage"])}</th><td>{_time(record)}</td>'
        f'<td class="bars"><span class="bar" style="width:{100 * record["seconds"] / longest:.1f}%"></span></td>'
        f"<td>{escape(record['created'][:16].replace('T', ' '))} UTC</td>"
        f"<td><code>{escape(record['fingerprint'])}</code></td></tr>"
        for record in records
    ]
    settings = [
        folded(record["stage"], {"config": record["config"], "facts": record["facts"]}, remark="settings and counts")
        for record in records
    ]
    folds = f'<div class="gap">{"".join(settings)}</div>'
    return section("What was run", table(head, rows, label="Stages, in the order they finished"), folds)


def _time(record: Mapping[str, Any]) -> str:
    """How long the stage took; of one that was interrupted only the last attempt is known."""
    return format_seconds(record["seconds"]) + (", after a break" if record["resumed"] else "")


def rejected_section(manifest: Mapping[str, Any], *, card: str | None = None) -> str:
    """Captures that preprocessing did not take, and why. `card` is the address of the shards' card."""
    more = "" if card is None else f' <a href="{escape(card)}">The dataset card</a> shows those that it took.'
    rejected = manifest["rejected"]
    total = manifest["num_sequences"] + len(rejected)
    if not rejected:
        return section("Rejected captures", note=f"None: all {total} captures are usable.{more}")
    reasons = Counter(item["reason"] for item in rejected)
    common = ", ".join(f"{count} × {escape(reason)}" for reason, count in reasons.most_common(4))
    note = f"{len(rejected)} of {total}: {common}.{more}"
    return section("Rejected captures", rejected_table(rejected), note=note)


def runs_section(tracking: Tracking, artifacts: Mapping[str, Artifact]) -> str:
    """Where MLflow keeps the runs, and how to see them."""
    head = '<tr><th scope="col">Run</th><th scope="col">Id</th></tr>'
    rows = []
    for name, artifact in artifacts.items():
        run_id = str(artifact.facts["mlflow_run_id"])
        url = tracking.run_url(run_id)
        link = f'<a href="{escape(url)}">{escape(run_id)}</a>' if url else f"<code>{escape(run_id)}</code>"
        rows.append(f'<tr><th scope="row">{escape(name)}</th><td>{link}</td></tr>')
    label = f"MLflow runs of experiment {tracking.experiment}"
    address = shown_address(tracking.uri)
    if sqlite_path(tracking.uri) is None:
        return section("Experiment records", table(head, rows, label=label), note=f"MLflow at {escape(address)}.")
    command = f"<pre>mlflow ui --backend-store-uri {escape(shlex.quote(address))}</pre>"
    return section("Experiment records", command, table(head, rows, label=label), note="To open MLflow's page:")
