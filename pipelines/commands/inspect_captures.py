"""`viewdiff inspect`: what is in a root of captures, before anything is made of it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from infra.errors import UserError
from infra.log import format_count
from infra.storage.files import StoragePath, atomic_write
from infra.system.processes import process_pool
from pipelines.generation.pictures import encode_png
from pipelines.settings.commands import InspectConfig
from preprocessing.captures.co3d import select_categories
from preprocessing.captures.set_lists import check_subset
from preprocessing.sequences.inspection import CategorySummary, contact_sheet, summarize_category

# Of the annotations' cameras.
CONVENTION = "R and T are meant as PyTorch3D's: X_camera = X R + T, x left, y up, z forward"

# Annotations of one category can take gigabytes as Python objects.
MOST_PROCESSES = 8


def inspect(root: StoragePath, config: InspectConfig) -> None:
    """Print a summary of each category and, if asked for, write a contact sheet.

    Raises:
        UserError: the root is no CO3Dv2 dataset or damaged, lacks a wanted category; a contact sheet of several
        categories is asked for, or cannot be written.
    """
    categories = select_categories(root, config.preprocess.categories)
    check_subset(root, categories, config.preprocess.subset)
    sheet = None
    if config.contact_sheet is not None:
        if len(categories) > 1:
            raise UserError(
                f"contact sheet of {len(categories)} categories: name one with --preprocess.categories; there are "
                f"{', '.join(categories)}"
            )
        sheet = check_sheet_path(config.contact_sheet)
    summaries = []
    for summary in _summaries(root, categories, config):
        print("\n".join(category_lines(summary)), flush=True)
        summaries.append(summary)
    if len(summaries) > 1:
        print(total_line(summaries))
    if sheet is not None:
        atomic_write(sheet, encode_png(contact_sheet(root, categories[0], config.preprocess)))
        print(f"written: {sheet}")


def check_sheet_path(name: str) -> Path:
    """The file that a contact sheet goes to. Raises UserError before any work if it cannot be written."""
    path = Path(name)
    if path.parts[:1] and path.parts[0].endswith(":"):
        raise UserError(f"contact sheet {path}: name a file on this machine")
    if not path.parent.is_dir():
        raise UserError(f"contact sheet {path}: no folder {path.parent}; make it or choose another")
    if path.is_dir():
        raise UserError(f"contact sheet {path}: is a folder; name a file, such as {path / 'sheet.png'}")
    return path


def category_lines(summary: CategorySummary) -> list[str]:
    """A summary for a person."""
    sequences, frames = format_count(summary.num_sequences, "sequence"), format_count(summary.num_frames, "frame")
    lines = [f"{summary.category}: {sequences}, {frames}, {summary.num_usable} usable"]
    lines += [f"{count:>9}  {reason} (as {summary.examples[reason]})" for reason, count in summary.reasons.items()]
    if summary.intrinsics_formats:
        lines.append(f"  intrinsics: {_counts(summary.intrinsics_formats)}")
    lines += [f"  set lists of {subset}: {_counts(splits)}" for subset, splits in summary.subsets.items()]
    if summary.eval_batches:
        lines.append(f"  evaluation batches: {_counts(summary.eval_batches)}")
    if summary.unframed:
        count = format_count(len(summary.unframed), "sequence")
        lines.append(f"  cameras: {summary.framing}, in {count} (as {summary.unframed[0]}); {CONVENTION}")
    return lines


def total_line(summaries: Sequence[CategorySummary]) -> str:
    """Sums over the categories."""
    sequences, frames, usable = (
        sum(getattr(summary, name) for summary in summaries) for name in ("num_sequences", "num_frames", "num_usable")
    )
    counts = f"{format_count(sequences, 'sequence')}, {format_count(frames, 'frame')}, {usable} usable"
    return f"{len(summaries)} categories: {counts}"


def _summaries(root: StoragePath, categories: Sequence[str], config: InspectConfig) -> Iterator[CategorySummary]:
    """In the categories' order; several at a time, since reading them takes a core some seconds each."""
    summarize = partial(summarize_category, root, config=config.preprocess)
    num_processes = min(len(categories), os.cpu_count() or 1, MOST_PROCESSES)
    if num_processes == 1:
        yield from map(summarize, categories)
        return
    with process_pool(num_processes, summarize_category.__module__) as pool:
        yield from pool.map(summarize, categories)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in Counter(counts).most_common())
