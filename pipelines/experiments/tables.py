"""What is different between trainings, from their record in MLflow: settings, data, code, and how they went.

Pure functions from records to tables, which the terminal and the page show alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from infra.errors import UserError
from infra.log import format_seconds
from infra.tracking.reading import History, RecordedRun
from infra.tracking.tags import COMMIT_TAG, FOLDER_TAG, INPUT_PREFIX, RAN_ON_TAG, VERSION_PREFIX
from pipelines.settings.names import nearest

LOSS, SECONDS = "loss", "time/seconds"  # metrics that every training has
NOTHING = "–"

_HIGHER_IS_BETTER, _LOWER_IS_BETTER = ("psnr", "ssim"), ("loss",)  # parts of metrics' names
_SHORT_ID = 8
_LAST_SHARE = 0.1  # of the steps, whose mean says more than the last one


@dataclass(frozen=True, eq=False, kw_only=True)
class Compared:
    """One of the runs, with what was read of it."""

    run: RecordedRun
    histories: Mapping[str, History]
    model: str
    """Where its model is, or its newest checkpoint."""

    def __post_init__(self) -> None:
        if LOSS not in self.histories:
            raise UserError(
                f"run {short(self.run)} has no {LOSS} yet (it is {self.run.status}); wait for its first step, or leave "
                "it out"
            )


@dataclass(frozen=True, kw_only=True)
class Row:
    """One property of all runs."""

    name: str
    cells: Sequence[str]
    best: int | None = None
    """Which run is ahead, where that can be said."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows about one question."""

    title: str
    rows: Sequence[Row]
    note: str = ""


def choose_runs(wanted: Sequence[str], runs: Sequence[RecordedRun]) -> list[RecordedRun]:
    """The runs that a person means by (the beginnings of) their ids or fingerprints, or by names.

    Raises:
        UserError: fewer than two, the same one twice, an unknown one, or one that could be several.
    """
    chosen = [_choose(text, runs) for text in wanted]
    if len(chosen) < 2:
        raise UserError(f"compare: only {short(chosen[0])} is named; name two or more, `viewdiff compare` lists them")
    for place, run in enumerate(chosen):
        if run in chosen[:place]:
            raise UserError(f"compare: {wanted[place]!r} is the run {short(run)}, which is named twice")
    return chosen


def _choose(text: str, runs: Sequence[RecordedRun]) -> RecordedRun:
    found = [run for run in runs if text and _is_meant(run, text)]
    if len(found) == 1:
        return found[0]
    if not found:
        choices = nearest(text, [name for run in runs for name in (run.name, run.id[:_SHORT_ID])])
        raise UserError(f"compare: no training run {text!r}{choices}; `viewdiff compare` without a run lists them")
    raise UserError(f"compare: {text!r} may be {', '.join(map(short, found))}; type more of its id")


def _is_meant(run: RecordedRun, text: str) -> bool:
    fingerprint = run.tags.get(FOLDER_TAG, "").rpartition("/")[2]
    return run.name == text or run.id.startswith(text.lower()) or fingerprint.startswith(text.lower())


def short(run: RecordedRun) -> str:
    """A run as a person reads it: name and the beginning of its id."""
    return f"{run.name!r} ({run.id[:_SHORT_ID]})"


def column_names(runs: Sequence[RecordedRun]) -> list[str]:
    """A name for each, with the beginning of its id where the name alone is not enough."""
    names = [run.name for run in runs]
    return [run.name if names.count(run.name) == 1 else f"{run.name} {run.id[:_SHORT_ID]}" for run in runs]


def metric_names(compared: Sequence[Compared]) -> list[str]:
    """The metrics that any of them has, the loss first."""
    names = {name for item in compared for name in item.histories} - {SECONDS}
    return sorted(names, key=lambda name: (name != LOSS, name))


def tables(compared: Sequence[Compared]) -> list[Table]:
    """Everything there is to say, in the order in which one asks."""
    runs = [item.run for item in compared]
    origins = [_origin(run) for run in runs]
    return [
        Table(title="Runs", rows=_run_rows(compared)),
        Table(title="Settings that differ", rows=differences([run.params for run in runs]), note="None."),
        Table(title="Data and code that differ", rows=differences(origins), note="None."),
        Table(title="Metrics", rows=_metric_rows(compared)),
    ]


def differences(values: Sequence[Mapping[str, str]]) -> list[Row]:
    """The keys whose values are not the same in all."""
    keys = sorted({key for mapping in values for key in mapping})
    rows = [Row(name=key, cells=[mapping.get(key, NOTHING) for mapping in values]) for key in keys]
    return [row for row in rows if len(set(row.cells)) > 1]


def _origin(run: RecordedRun) -> dict[str, str]:
    """What a run was made from and by."""
    origin = {f"data for {context}": name for context, name in run.datasets.items()}
    origin["commit"] = run.tags.get(COMMIT_TAG, NOTHING)
    for prefix, title in ((INPUT_PREFIX, "input "), (VERSION_PREFIX, "version of ")):
        origin |= {title + key.removeprefix(prefix): run.tags[key] for key in run.tags if key.startswith(prefix)}
    return origin


def _run_rows(compared: Sequence[Compared]) -> list[Row]:
    rows = {
        "id": [item.run.id for item in compared],
        "started": [f"{item.run.started:%Y-%m-%d %H:%M} UTC" for item in compared],
        "status": [item.run.status for item in compared],
        "steps": [f"{item.histories[LOSS].steps[-1]:,}" for item in compared],
        "time in steps": [_time(item) for item in compared],
        "ran on": [item.run.tags.get(RAN_ON_TAG, NOTHING) for item in compared],
        "views per second": [_speed(item) for item in compared],
        "model": [item.model for item in compared],
    }
    return [Row(name=name, cells=cells) for name, cells in rows.items()]


def _time(item: Compared) -> str:
    seconds = item.histories.get(SECONDS)
    return NOTHING if seconds is None else format_seconds(float(seconds.values.sum()))


def _speed(item: Compared) -> str:
    """Views that were trained on, over the time of the steps."""
    seconds, sizes = item.histories.get(SECONDS), [item.run.params.get(name) for name in ("batch_size", "num_views")]
    if seconds is None or None in sizes or not seconds.values.sum():
        return NOTHING
    batch_size, num_views = (int(str(size)) for size in sizes)
    return f"{batch_size * num_views * len(seconds.steps) / seconds.values.sum():.3g}"


def _metric_rows(compared: Sequence[Compared]) -> list[Row]:
    """Last and best points, and means over the last steps."""
    rows = []
    for name in metric_names(compared):
        histories = [item.histories.get(name) for item in compared]
        sign = _sign(name)
        if sign is not None:
            if any(history is not None and len(history.values) > 1 for history in histories):
                means = [None if history is None else _last_mean(history) for history in histories]
                cells = [NOTHING if mean is None else f"{mean:.5g}" for mean in means]
                rows.append(Row(name=f"{name}, mean of the last tenth", cells=cells, best=_ahead(means, sign)))
            places = [None if history is None else int(np.argmin(sign * history.values)) for history in histories]
            rows.append(_points_row(f"{name}, best", histories, places, sign))
        ends = [None if history is None else -1 for history in histories]
        rows.append(_points_row(f"{name}, last", histories, ends, None))
    return rows


def _sign(name: str) -> float | None:
    """1 when a metric should be low, -1 when it should be high, None when neither can be said."""
    if any(part in name for part in _LOWER_IS_BETTER):
        return 1.0
    return -1.0 if any(part in name for part in _HIGHER_IS_BETTER) else None


def _last_mean(history: History) -> float:
    return float(history.values[-max(1, round(_LAST_SHARE * len(history.values))) :].mean())


def _points_row(
    name: str, histories: Sequence[History | None], places: Sequence[int | None], sign: float | None
) -> Row:
    """One point of each curve; with a sign (see `_sign`) the run that is ahead is marked."""
    values: list[float | None] = []
    cells = []
    for history, place in zip(histories, places, strict=True):
        if history is None or place is None:
            values.append(None)
            cells.append(NOTHING)
        else:
            values.append(float(history.values[place]))
            cells.append(f"{history.values[place]:.5g} at step {history.steps[place]:,}")
    return Row(name=name, cells=cells, best=None if sign is None else _ahead(values, sign))


def _ahead(values: Sequence[float | None], sign: float) -> int | None:
    """The place of the best value, if there is anything that it is better than."""
    known = {place: sign * value for place, value in enumerate(values) if value is not None}
    return min(known, key=lambda place: known[place]) if len(set(known.values())) > 1 else None
