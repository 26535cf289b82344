"""The dataset card: one self-contained HTML page from which people tell whether to trust a folder of shards.

A function of the folder and this code alone: no date, no path, so that the same shards have the same card.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from infra.log import format_count
from infra.storage.files import StoragePath, atomic_write
from pipelines.pages.card_pictures import MOST_FRAMES, sample_figures
from pipelines.pages.charts import histogram_chart
from pipelines.pages.page import facts, folded, page, section, table, unfolding
from pipelines.spine.artifacts import CARD_NAME
from preprocessing.captures.set_lists import SPLITS
from preprocessing.picking import evenly_on_turn
from preprocessing.shards.reading import FrameIndex, ShardReader
from preprocessing.shards.schema import manifest_digest
from preprocessing.shards.statistics import CategoryCounts, category_counts, count_defects, distributions

MAX_REJECTED_ROWS = 200
MOST_CAPTIONS = 24


def write_card(folder: StoragePath) -> None:
    """Write card.html into a complete folder of shards, unless it is there.

    Raises:
        UserError: the folder is incomplete or damaged.
    """
    path = folder / CARD_NAME
    if path.is_file():
        return
    for partial in folder.glob(f".{CARD_NAME}.*"):  # of a run that was killed while it wrote
        partial.unlink()
    atomic_write(path, dataset_card(folder).encode())


def dataset_card(folder: StoragePath) -> str:
    """The card of a folder of shards, HTML.

    Raises:
        UserError: as `write_card`.
    """
    index = FrameIndex.open(folder)
    manifest = index.manifest
    counts = category_counts(index)
    names = list(counts) if len(counts) <= 3 else [f"{len(counts)} categories"]
    return page(
        title=f"{format_count(manifest['num_sequences'], 'sequence')} of {', '.join(names)}",
        eyebrow="Dataset card",
        lead=_lead(manifest),
        content=[
            _headline(manifest, counts),
            _samples(index, ShardReader(folder, index), num_categories=len(counts)),
            section(
                "Cameras and pictures",
                f'<div class="charts">{"".join(histogram_chart(item) for item in distributions(index))}</div>',
                note="Of everything stored, in the normalised world: the object's box is centred at the origin and "
                "its largest side is 2. Focal length and principal point are those of the stored square picture.",
            ),
            section("Categories and splits", _categories(counts)),
            _captions(manifest["captions"]),
            _rejected(manifest),
            _defects(manifest),
            _origin(manifest),
        ],
        footer=f"Code version <code>{escape(_version(manifest))}</code>",
    )


def rejected_table(rejected: Sequence[Mapping[str, str]]) -> str:
    """Captures that were not taken and why, as a table of at most `MAX_REJECTED_ROWS` rows."""
    head = '<tr><th scope="col">Capture</th><th class="text" scope="col">Reason</th></tr>'
    rows = [
        f'<tr><th scope="row">{escape(item["category"])} / {escape(item["sequence"])}</th>'
        f'<td class="text">{escape(item["reason"])}</td></tr>'
        for item in rejected[:MAX_REJECTED_ROWS]
    ]
    return table(head, rows, label=f"Rejected captures and why ({len(rows)} of {len(rejected)} shown)")


def _lead(manifest: Mapping[str, Any]) -> str:
    side, num_rejected = manifest["image_size"], len(manifest["rejected"])
    num_dropped = count_defects(manifest["frame_defects"])[0].total()
    lost = [format_count(num_rejected, "sequence") + " rejected"] if num_rejected else []
    lost += [format_count(num_dropped, "frame") + " of the others dropped"] if num_dropped else []
    return (
        f"<strong>{format_count(manifest['num_frames'], 'frame')}</strong> of {side} × {side} pixels from "
        f"{manifest['num_sequences']:,} of {format_count(manifest['num_sequences'] + num_rejected, 'capture')}; "
        f"{', '.join(lost) or 'nothing was rejected or dropped'}."
    )


def _headline(manifest: Mapping[str, Any], counts: Mapping[str, CategoryCounts]) -> str:
    num_bytes = sum(shard["bytes"] for shard in manifest["shards"])
    values = {
        "categories": len(counts),
        "sequences": manifest["num_sequences"],
        "frames": manifest["num_frames"],
        "shards": len(manifest["shards"]),
    }
    return facts(
        {name: f"{value:,}" for name, value in values.items()}
        | {"size": _bytes(num_bytes), "rejected sequences": f"{len(manifest['rejected']):,}"}
    )


def _samples(index: FrameIndex, reader: ShardReader, *, num_categories: int) -> str:
    part = f" from {MOST_FRAMES} of the {num_categories:,} categories" if num_categories > MOST_FRAMES else ""
    note = (
        f"Evenly picked{part}, not chosen by looks. "
        '<span class="key edge">Blue</span>: the box of the object’s points, which '
        'should enclose it in every frame; hidden edges are dashed. <span class="key base">Orange</span>: its base, '
        'which should be below. <span class="key outline">White</span>: the outline of the mask, where there is one.'
    )
    return section("Samples", sample_figures(index, reader), note=note)


def _categories(counts: Mapping[str, CategoryCounts]) -> str:
    groups = '<tr><th rowspan="2" scope="col">Category</th>' + "".join(
        f'<th class="group" colspan="{len(SPLITS) + 1}" scope="colgroup">{name}</th>'
        for name in ("Sequences", "Frames")
    )
    columns = "".join(f'<th scope="col">{split}</th>' for split in (*SPLITS, "all"))
    head = f'{groups}<th rowspan="2" scope="col">Pictures and masks</th></tr><tr>{columns * 2}</tr>'
    rows = [_category_row(name, [item]) for name, item in counts.items()]
    if len(counts) > 1:
        rows.insert(0, _category_row("All", list(counts.values()), kind="all"))
    return table(head, rows, label="Sequences, frames and bytes by category and split")


def _category_row(name: str, items: Sequence[CategoryCounts], *, kind: str = "") -> str:
    cells = []
    for counts in ([item.sequences for item in items], [item.frames for item in items]):
        by_split = [sum(count[split] for count in counts) for split in SPLITS]
        cells += [f"{value:,}" for value in (*by_split, sum(by_split))]
    cells.append(_bytes(sum(item.num_bytes for item in items)))
    return f'<tr class="{kind}"><th scope="row">{escape(name)}</th><td>{"</td><td>".join(cells)}</td></tr>'


def _captions(captions: Sequence[str]) -> str:
    shown = [captions[place] for place in evenly_on_turn(len(captions), MOST_CAPTIONS)]
    items = "".join(f"<li>{escape(caption)}</li>" for caption in shown)
    note = format_count(len(captions), "different caption") + (
        f", {len(shown)} of them shown." if len(shown) < len(captions) else "."
    )
    return section("Captions", f'<ul class="captions">{items}</ul>', note=note)


def _rejected(manifest: Mapping[str, Any]) -> str:
    rejected = manifest["rejected"]
    if not rejected:
        return section("Rejected sequences", note="None.")
    reasons = _reasons(Counter(item["reason"] for item in rejected), "Sequences", label="Rejected sequences by reason")
    listed = unfolding("List of rejected sequences", rejected_table(rejected), remark=f"{len(rejected):,}")
    total = manifest["num_sequences"] + len(rejected)
    note = f"{len(rejected):,} of {total:,}, {len(rejected) / total:.1%}."
    return section("Rejected sequences", reasons, f'<div class="gap">{listed}</div>', note=note)


def _defects(manifest: Mapping[str, Any]) -> str:
    dropped, kept = count_defects(manifest["frame_defects"])
    if not dropped and not kept:
        return section("Dropped frames", note="None of the stored sequences lost a frame.")
    total = manifest["num_frames"] + dropped.total()
    parts = [_reasons(dropped, "Frames", label="Dropped frames by reason")] if dropped else []
    if kept:
        parts.append(f'<div class="gap">{_reasons(kept, "Frames", label="Frames kept without their mask")}</div>')
    note = (
        f"Of the stored sequences’ {total:,} frames, {dropped.total():,} ({dropped.total() / total:.1%}) are left out."
    )
    return section("Dropped frames", *parts, note=note)


def _reasons(counts: Counter[str], what: str, *, label: str) -> str:
    """A table of reasons, the most common first, with bars."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    columns = f'<th class="text" scope="col">Reason</th><th scope="col">{what}</th><th class="bars" scope="col"></th>'
    rows = [
        f'<tr><th class="text" scope="row">{escape(reason)}</th><td>{count:,}</td>'
        f'<td class="bars"><span class="bar" style="width:{100 * count / ordered[0][1]:.1f}%"></span></td></tr>'
        for reason, count in ordered
    ]
    return table(f"<tr>{columns}</tr>", rows, label=label)


def _origin(manifest: Mapping[str, Any]) -> str:
    values = {
        "Code version": _version(manifest),
        "Format version of the shards": str(manifest["schema_version"]),
        "Digest of dataset.json": manifest_digest(manifest),
        "Digest of index.parquet": manifest["index_sha256"],
    }
    rows = [
        f'<tr><th scope="row">{name}</th><td class="text"><code>{escape(value)}</code></td></tr>'
        for name, value in values.items()
    ]
    parts = [table("", rows, label="What these shards are and what made them")]
    if "config" in manifest:
        parts.append(f'<div class="gap">{folded("Settings", manifest["config"], remark="of preprocess")}</div>')
    note = "The digest stands for the whole folder: dataset.json holds those of the index and of every shard."
    return section("Origin", *parts, note=note)


def _version(manifest: Mapping[str, Any]) -> str:
    """The code's version; folders of older code, and copies outside a git checkout, do not know it."""
    return manifest.get("git_commit") or "unknown"


def _bytes(count: int) -> str:
    for size, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= size:
            return f"{count / size:.3g} <small>{unit}</small>"
    return f"{count} <small>bytes</small>"
