"""Stage preprocess: captures in CO3Dv2 layout -> a folder of shards, one Ray Data task per shard.

Being killed at any point costs only the shards in work: the same call goes on where it stopped and ends with the same
bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

from infra.cluster.tasks import run_tasks
from infra.log import Progress, format_count
from infra.provenance.code_version import git_commit
from infra.provenance.fingerprint import plain
from infra.storage.files import StoragePath, require_space
from pipelines.pages.card import write_card
from pipelines.spine.artifacts import RawDataset
from pipelines.spine.runtime import RuntimeConfig
from preprocessing.config import PreprocessConfig
from preprocessing.shards.commit import commit_folder, discard, remove_records
from preprocessing.shards.planning import ShardTask, plan_shards, require_sequences
from preprocessing.shards.schema import DATASET_NAME, read_manifest
from preprocessing.shards.writing import committed_record, require_record, sweep, write_planned_shard

# Reasons of refusals that are printed, the commonest first.
REASONS_SHOWN = 5
# A stored picture with its mask takes less than a byte per pixel; 2 kB per frame for index, headers and padding.
_BYTES_PER_PIXEL, _BYTES_PER_FRAME = 1, 2048
# What a task needs beside the encoded frames of one sequence: 415 MB for photos of 2 megapixels, 383 of them the
# libraries (docs/benchmarks/, preprocess-memory). The rest is for larger photos: the pixels of one, several times.
_TASK_BYTES = 500_000_000


def preprocess(
    config: PreprocessConfig, inputs: Mapping[str, Any], folder: StoragePath, runtime: RuntimeConfig
) -> dict[str, Any]:
    """Write the shards of `inputs["raw"]` and their card into `folder`; returns counts and the reasons of rejections.

    Raises:
        UserError: the root is no CO3Dv2 dataset, lacks a wanted category or is damaged; no sequence is usable (with the
        table of reasons); no space.
    """
    raw: RawDataset = inputs["raw"]
    if not (folder / DATASET_NAME).is_file():
        write_shards(raw.data, folder, config, num_workers=runtime.num_workers)
    remove_records(folder)  # when the last run was killed between its last two steps
    write_card(folder)
    manifest = read_manifest(folder)
    print("\n".join(outcome_lines(manifest)), flush=True)
    return {
        "num_sequences": manifest["num_sequences"],
        "num_frames": manifest["num_frames"],
        "num_shards": len(manifest["shards"]),
        "categories": manifest["categories"],
        "splits": manifest["splits"],
        "rejected": dict(Counter(item["reason"] for item in manifest["rejected"])),
        "frame_defects": dict(Counter(item["reason"] for item in manifest["frame_defects"])),
    }


def outcome_lines(manifest: Mapping[str, Any]) -> list[str]:
    """How many captures a folder of shards holds and, if some were refused, how many and mostly why."""
    stored, refused = manifest["num_sequences"], manifest["rejected"]
    lines = [f"preprocess  {stored} of {format_count(stored + len(refused), 'capture')} stored"]
    if not refused:
        return lines
    counts = Counter(item["reason"] for item in refused).most_common()
    examples = {item["reason"]: f"{item['category']}/{item['sequence']}" for item in reversed(refused)}
    shown = [f"{count:>9}  {reason} (as {examples[reason]})" for reason, count in counts[:REASONS_SHOWN]]
    others = sum(count for _, count in counts[REASONS_SHOWN:])
    more = [f"{others:>9}  for {len(counts) - REASONS_SHOWN} other reasons, see {DATASET_NAME}"] if others else []
    return [f"{lines[0]}, {len(refused)} refused:", *shown, *more]


def write_shards(root: StoragePath, folder: StoragePath, config: PreprocessConfig, *, num_workers: int) -> None:
    """Plan, write the shards that are not committed yet, and commit the folder.

    Raises:
        UserError: as `preprocess`.
    """
    plan = plan_shards(root, config)
    require_sequences(root, len(plan.tasks), plan.rejected)
    committed = {task.number for task in plan.tasks if committed_record(folder, task, config)}
    pending = [task for task in plan.tasks if task.number not in committed]
    require_space(folder, sum(task.num_frames for task in pending) * _frame_bytes(config))
    num_tasks = len(plan.tasks)
    with (
        Progress("preprocess", total=num_tasks, unit="shards", done=num_tasks - len(pending)) as progress,
        closing(run_writers(pending, root, folder, config, num_workers=num_workers)) as results,
    ):
        frames = 0
        for result in results:
            frames += result["frames"]
            progress.advance(frames=frames)
    if (folder / DATASET_NAME).is_file():  # by a run on another machine, which keeps its data in the same place
        return
    sweep(folder, keep={task.number for task in plan.tasks})  # what killed workers left
    records = [require_record(folder, task, config) for task in plan.tasks]
    rejected = (*plan.rejected, *(item for record in records for item in record.rejected))
    if not any(record.num_sequences for record in records):
        discard(folder, num_tasks)
    require_sequences(root, sum(record.num_sequences for record in records), rejected)
    made_by = {"config": plain(config), "git_commit": git_commit()}
    commit_folder(folder, records, rejected, config.image_size, eval_batches=plan.eval_batches, made_by=made_by)


def run_writers(
    tasks: Sequence[ShardTask], root: StoragePath, folder: StoragePath, config: PreprocessConfig, *, num_workers: int
) -> Generator[dict[str, Any], None, None]:
    """Have Ray write the shards; yields each one's result as it is committed, in any order. Ray repeats the tasks of
    workers that die.
    """
    longest = max((len(planned.sequence.frames) for task in tasks for planned in task.sequences), default=0)
    yield from run_tasks(
        write_planned_shard,
        [{"task": task} for task in tasks],
        settings={"root": root.absolute(), "config": config},
        folder=folder.absolute(),
        num_workers=num_workers,
        memory_bytes=_TASK_BYTES + longest * _frame_bytes(config),
    )


def _frame_bytes(config: PreprocessConfig) -> int:
    """The most that a stored frame takes."""
    return _BYTES_PER_FRAME + _BYTES_PER_PIXEL * config.image_size**2
