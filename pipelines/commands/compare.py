"""`viewdiff compare`: trainings beside each other, on the terminal and as a page; without names, the list of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from infra.addresses import shown_address
from infra.errors import UserError
from infra.log import Progress
from infra.storage.files import atomic_write, require_space
from infra.tracking.experiment import Tracking
from infra.tracking.reading import History, RecordedRun, RunReader
from infra.tracking.tags import CHECKPOINT, FOLDER_PARAM, FOLDER_TAG, STAGE_TAG
from pipelines.experiments.tables import LOSS, NOTHING, SECONDS, Compared, Table, choose_runs, column_names, tables
from pipelines.pages.comparison import comparison_page
from pipelines.settings.commands import ComparisonConfig
from pipelines.spine.runtime import RuntimeConfig

PAGE_NAME = "comparison.html"
_READ_PARTS = ("loss", "psnr", "ssim", "gradient_norm", SECONDS)  # of metrics' names: what is compared step by step
_PAGE_BYTES = 10_000_000


def compare(names: Sequence[str], config: ComparisonConfig) -> None:
    """Print the comparison of these runs and write its page; of no runs, list those there are.

    Raises:
        UserError: MLflow does not answer or has no training runs; or the names do not say which runs.
    """
    tracking = Tracking(RuntimeConfig(root=config.root, tracking_uri=config.tracking_uri).tracking)
    source = shown_address(tracking.uri)
    if tracking.is_new_database():
        raise UserError(f"compare: there is no database {source}; name another --root or --tracking-uri")
    tracking.check()
    with tracking.answering():
        reader = RunReader(tracking)
        runs = reader.runs({STAGE_TAG: "train"})
        if not runs:
            raise UserError(
                f"MLflow at {source} has no training runs in experiment {tracking.experiment!r}; name another "
                "--root or --tracking-uri, or another experiment in MLFLOW_EXPERIMENT_NAME"
            )
        if not names:
            print("\n".join(_list(runs)))
            return
        chosen = choose_runs(names, runs)
        output = Path(config.output).expanduser()
        require_space(output, _PAGE_BYTES)
        compared = _read(reader, chosen)
    columns, found = column_names(chosen), tables(compared)
    print("\n".join(line for table in found for line in _lines(table, columns)))
    output.mkdir(parents=True, exist_ok=True)
    atomic_write(output / PAGE_NAME, comparison_page(columns, compared, found, source=source).encode())
    print(f"\npage  {output / PAGE_NAME}")


def _read(reader: RunReader, runs: Sequence[RecordedRun]) -> list[Compared]:
    wanted = {run.id: [name for name in run.last if any(part in name for part in _READ_PARTS)] for run in runs}
    histories: dict[str, dict[str, History]] = {}
    with Progress("compare", total=sum(map(len, wanted.values())), unit="curves") as progress:
        for run in runs:
            histories[run.id] = {}
            for name in wanted[run.id]:
                histories[run.id][name] = reader.history(run, name)
                progress.advance()
    return [Compared(run=run, histories=histories[run.id], model=_model(reader, run)) for run in runs]


def _model(reader: RunReader, run: RecordedRun) -> str:
    """Where a finished run's model is, or another's newest checkpoint."""
    folder = run.tags.get(FOLDER_TAG)
    if run.status == "FINISHED":
        return NOTHING if folder is None else f"{folder}/model"
    checkpoint = reader.newest_kept_model(run, CHECKPOINT)
    return NOTHING if checkpoint is None else checkpoint[FOLDER_PARAM]


def _list(runs: Sequence[RecordedRun]) -> list[str]:
    """A line for each run."""
    rows = [("ID", "NAME", "STARTED (UTC)", "STATUS", "STEPS", "LOSS")]
    for run in runs:
        step, loss = run.last.get(LOSS, (0, None))
        shown = NOTHING if loss is None else f"{loss:.5g}"
        rows.append((run.id[:8], run.name, f"{run.started:%Y-%m-%d %H:%M}", run.status, f"{step:,}", shown))
    return _aligned(rows)


def _lines(table: Table, columns: Sequence[str]) -> list[str]:
    """A table for the terminal; `*` is the run that is ahead."""
    if not table.rows:
        return ["", f"{table.title}: {table.note.rstrip('.').lower()}"]
    rows = [(table.title, *columns)]
    for row in table.rows:
        cells = [f"{cell} *" if place == row.best else cell for place, cell in enumerate(row.cells)]
        rows.append((f"  {row.name}", *cells))
    return ["", *_aligned(rows)]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
