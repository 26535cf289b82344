"""Stage report: one self-contained HTML page of what was run and what came out, for people who were not there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from infra.storage.files import atomic_write
from infra.tracking.experiment import Tracking
from pipelines.evaluation.scoring import METHODS, REASON, psnr_per_view, read_objects, scored
from pipelines.generation.pictures import ObjectPictures, pictures_path
from pipelines.pages.charts import strip_chart
from pipelines.pages.page import ObjectCard, facts, objects, page, section, table
from pipelines.pages.run import curves, read_chain, records_section, rejected_section, runs_section
from pipelines.settings.run import ReportConfig
from pipelines.spine.artifacts import CARD_NAME, Artifact
from pipelines.spine.runtime import RuntimeConfig
from preprocessing.shards.schema import read_manifest

SHORT_NAMES = {
    "": "ours",
    "_copy": "copy",
    "_mean": "mean",
    "_vae": "ceiling",
}  # of METHODS; also classes of the style sheet


def write_report(
    config: ReportConfig, inputs: Mapping[str, Any], folder: Path, runtime: RuntimeConfig
) -> dict[str, Any]:
    """Write report.html into `folder` and log it to the evaluation's MLflow run.

    `inputs`: evaluation, checkpoint, shards.
    """
    evaluation, checkpoint = inputs["evaluation"], inputs["checkpoint"]
    summary = json.loads(evaluation.summary_path.read_bytes())
    objects_read = read_objects(evaluation.objects_path)
    columns = scored(objects_read)
    failed_texts = summary["failed_texts"]
    records = read_chain(list(inputs.values()))
    tracking = Tracking(runtime.tracking)
    tracking.check()
    with tracking.answering():
        recorded = runs_section(tracking, {"Training": checkpoint, "Evaluation": evaluation})
    html = page(
        title=f"{_count(columns, objects_read)} unseen objects, one picture each",
        eyebrow=f"{config.title} · {records[-1]['created'][:10]}",
        lead=_lead(summary, columns),
        content=[
            _headline(summary, records),
            _objects_section(evaluation.pictures_dir, columns),
            _scores_section(columns, summary, of=_count(columns, objects_read)),
            _texts_section(evaluation.pictures_dir, summary["num_text_objects"], failed_texts),
            _failed_section(objects_read, failed_texts),
            section("Training", curves(checkpoint.metrics_path), note="Faint: every step. Bold: smoothed."),
            records_section(records),
            rejected_section(read_manifest(inputs["shards"].data), card=_card_link(inputs["shards"], folder)),
            recorded,
        ],
        footer=_footer(records),
    )
    path = folder / "report.html"
    atomic_write(path, html.encode())
    with tracking.answering():
        tracking.resume(evaluation.facts["mlflow_run_id"]).log_artifact(path)
    return {"bytes": path.stat().st_size, "num_objects": summary["num_objects"]}


def _card_link(shards: Artifact, folder: Path) -> str | None:
    """Address of the shards' card from a page in `folder`, if they have one."""
    card = shards.data / CARD_NAME
    return quote(os.path.relpath(card, folder)) if isinstance(card, Path) and card.is_file() else None


def _lead(summary: Mapping[str, Any], columns: Mapping[str, Sequence[Any]]) -> str:
    num_views = round(float(np.mean([len(frames) for frames in columns["target_frames"]])))
    copy, mean = (_gain(summary[f"psnr_gain_{baseline}"]) for baseline in ("copy", "mean"))
    return (
        f"From one picture and a caption, the model painted {num_views} other views of each object. Against the real "
        f"frames they score <strong>{summary['psnr']:.2f} dB</strong> PSNR: {copy} copying the given picture, {mean} "
        "the mean training image."
    )


def _gain(decibels: float) -> str:
    return f"{abs(decibels):.2f} dB {'above' if decibels >= 0 else 'below'}"


def _headline(summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    seconds = sum(record["seconds"] for record in records)
    time = "all stages, last attempts" if any(record["resumed"] for record in records) else "all stages"
    copy, mean = (
        f"{summary[f'psnr_gain_{name}']:+.2f} <small>± {summary[f'psnr_gain_{name}_error']:.2f} dB</small>"
        for name in ("copy", "mean")
    )
    return facts(
        {
            "PSNR": f"{summary['psnr']:.2f} <small>dB</small>",
            "over the copied view": copy,
            "over the mean image": mean,
            "SSIM": f"{summary['ssim']:.3f}",
            "objects ahead of both": f"{summary['share_ahead_of_both']:.0%}",
            time: f"{seconds / 60:.1f} <small>min</small>",
        }
    )


def _objects_section(pictures_dir: Path, columns: Mapping[str, Sequence[Any]]) -> str:
    cards = []
    for number, name in enumerate(zip(columns["category"], columns["sequence"], strict=True)):
        pictures = ObjectPictures.load(pictures_path(pictures_dir, *name))
        views = zip(columns["target_frames"][number], psnr_per_view(pictures), strict=True)
        scores = f"<b>{columns['psnr'][number]:.2f} dB</b> · copied view {columns['psnr_copy'][number]:.2f}"
        scores += f" · mean image {columns['psnr_mean'][number]:.2f}"
        view_facts = [f"frame {frame} · {value:.1f} dB" for frame, value in views]
        cards.append(
            ObjectCard(
                title=" / ".join(name),
                pictures=pictures,
                subtitle=pictures.caption,
                scores=scores,
                view_facts=view_facts,
            )
        )
    note = (
        "Drag a picture sideways, or use the slider and the arrow keys, to go around the object. On the dial, "
        "cameras seen from above: the ring is the given view, the dots are the generated ones. Depth: near is bright."
    )
    return section("Unseen objects", objects(cards), note=note)


def _texts_section(pictures_dir: Path, count: int, failed: Mapping[str, str]) -> str:
    names = [name for name in (f"text-{number}" for number in range(count)) if name not in failed]
    if not names:
        return ""
    loaded = [ObjectPictures.load(pictures_path(pictures_dir, name)) for name in names]
    cards = [ObjectCard(title=f"“{pictures.caption}”", pictures=pictures) for pictures in loaded]
    return section(
        "From text alone", objects(cards), note="No picture given: captions of held-out objects, with guidance."
    )


def _failed_section(columns: Mapping[str, Sequence[Any]], failed_texts: Mapping[str, str]) -> str:
    """Objects without a result, and why."""
    names = map(" / ".join, zip(columns["category"], columns["sequence"], strict=True))
    reasons = {name: reason for name, reason in zip(names, columns[REASON], strict=True) if reason is not None}
    reasons |= failed_texts
    if not reasons:
        return ""
    head = '<tr><th scope="col">Object</th><th class="text" scope="col">Reason</th></tr>'
    rows = [
        f'<tr><th scope="row">{escape(name)}</th><td class="text">{escape(reason)}</td></tr>'
        for name, reason in reasons.items()
    ]
    note = "These objects could not be generated or scored. They are in no mean."
    return section("Failed", table(head, rows, label="Objects without a result"), note=note)


def _count(columns: Mapping[str, Sequence[Any]], all_columns: Mapping[str, Sequence[Any]]) -> str:
    """How many objects have scores, and of how many where some have none."""
    scored_objects, all_objects = len(columns["category"]), len(all_columns["category"])
    return f"{scored_objects}" if scored_objects == all_objects else f"{scored_objects} of {all_objects}"


def _scores_section(columns: Mapping[str, Sequence[Any]], summary: Mapping[str, Any], *, of: str) -> str:
    chart = strip_chart(
        {label: (SHORT_NAMES[suffix], columns[f"psnr{suffix}"]) for suffix, label in METHODS.items()}, unit="dB"
    )
    groups = '<tr><th rowspan="2" scope="col">Object</th>' + "".join(
        f'<th class="group" colspan="{len(METHODS)}" scope="colgroup">{name}</th>' for name in ("PSNR, dB", "SSIM")
    )
    methods = "".join(f'<th scope="col">{escape(label)}</th>' for label in SHORT_NAMES.values())
    head = f"{groups}</tr><tr>{methods * 2}</tr>"
    names = [
        f"{category} / {sequence}" for category, sequence in zip(columns["category"], columns["sequence"], strict=True)
    ]
    rows = [_score_row(f"Mean of {of} objects", summary, kind="all")]
    rows += [_score_row(name, {key: values[i] for key, values in columns.items()}) for i, name in enumerate(names)]
    note = (
        "Two baselines that need no model, and a ceiling: the real frame through the autoencoder and back, since "
        "pictures decoded from latents cannot be expected to be better. Higher is better; each dot is an object."
    )
    return section("Against the truth", chart, table(head, rows, label="PSNR and SSIM of every object"), note=note)


def _score_row(name: str, values: Mapping[str, Any], *, kind: str = "") -> str:
    """One object; the best of all but the ceiling is marked."""
    cells = []
    for metric, digits in (("psnr", 2), ("ssim", 3)):
        best = max(values[metric + suffix] for suffix in METHODS if suffix != "_vae")
        for suffix in METHODS:
            value = values[metric + suffix]
            mark = ' class="best"' if suffix != "_vae" and value == best else ""
            cells.append(f"<td{mark}>{value:.{digits}f}</td>")
    return f'<tr class="{kind}"><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>'


def _footer(records: Sequence[Mapping[str, Any]]) -> str:
    last = records[-1]
    versions = " · ".join(f"{escape(name)} {escape(str(version))}" for name, version in last["versions"].items())
    return f"Commit <code>{escape(str(last['git_commit']))}</code><br>{versions}"
