"""Writes a dataset of procedural objects in CO3Dv2's layout, with exact cameras, masks, depth and point clouds.

    ROOT/category_to_subset_name_list.json
    ROOT/<category>/frame_annotations.jgz, sequence_annotations.jgz
    ROOT/<category>/set_lists/set_lists_fewview_dev.json, eval_batches/eval_batches_fewview_dev.json
    ROOT/<category>/captions.json                     {sequence: [caption, ...]}, an addition of this project
    ROOT/<category>/<sequence>/...                    see files.py
    ROOT/defects.json                                 {category/sequence: [defect, ...]}, only with `defects`

A sequence is a pure function of (seed, category, index) and of the frames asked for (number, size, defects): further
categories or objects change no existing one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator
from concurrent.futures import as_completed
from contextlib import closing
from pathlib import Path
from typing import Any

from infra.errors import UserError
from infra.log import Progress
from infra.provenance.fingerprint import fingerprint
from infra.storage.files import atomic_write
from infra.system.processes import process_pool
from preprocessing.captures.co3d import encode_jgz
from preprocessing.synthetic.config import SyntheticConfig
from preprocessing.synthetic.defects import add_defect, defect_of
from preprocessing.synthetic.files import write_frames, write_point_cloud
from preprocessing.synthetic.scenes import plan_sequence, sequence_random

SUBSET = "fewview_dev"
# Written last into a sequence's folder: what the category's annotation files are put together from.
RECORD_NAME = "synthetic.json"
# Of every 20 objects 3 are for testing and one for validation, spread so that small datasets have some too.
TEST_POSITIONS, VAL_POSITIONS, SPLIT_PERIOD = (1, 8, 15), (5,), 20
NUM_EVAL_TARGETS, MAX_EVAL_SOURCES = 4, 5
_FORMAT_VERSION = 1  # raised when the same settings would now give other files


def split_of(index: int) -> str:
    """The split of a category's object number `index`; it never depends on how many objects there are."""
    position = index % SPLIT_PERIOD
    return "test" if position in TEST_POSITIONS else "val" if position in VAL_POSITIONS else "train"


def write_dataset(config: SyntheticConfig, root: Path, *, num_processes: int) -> dict[str, int]:
    """Write the dataset below `root`; sequences that are already there are kept, so a killed run goes on where it was.

    What `root` has from an earlier call with the same settings stays listed. Returns counts of categories, sequences
    and frames asked for.

    Raises:
        UserError: `root` holds a sequence of other settings.
    """
    tasks = [(category, index) for category in config.categories for index in range(config.objects_per_category)]
    missing = [task for task in tasks if not _is_complete(config, root, *task)]
    done = len(tasks) - len(missing)
    with (
        Progress("synth", total=len(tasks), unit="sequences", done=done) as progress,
        closing(_written(config, root, missing, num_processes)) as finished,
    ):
        for name in finished:
            progress.advance(1, sequence=name)
    for category in config.categories:
        _write_category(config, root, category)
    _write_root(root)
    return {
        "num_categories": len(config.categories),
        "num_sequences": len(tasks),
        "num_frames": len(tasks) * config.frames_per_sequence,
    }


def write_sequence(config: SyntheticConfig, root: Path, category: str, index: int) -> str:
    """Write one sequence under a temporary name and rename it when complete; returns category/sequence."""
    plan = plan_sequence(
        seed=config.seed,
        category=category,
        index=index,
        num_frames=config.frames_per_sequence,
        short_side=config.image_size,
    )
    final = root / category / plan.name
    partial = final.with_name(f".partial-{plan.name}")
    if partial.exists():
        shutil.rmtree(partial)
    frames = write_frames(plan, partial)
    sequence = {
        "sequence_name": plan.name,
        "category": category,
        "video": None,
        "point_cloud": write_point_cloud(plan, config.seed, index, partial),
        "viewpoint_quality_score": plan.quality,
    }
    defects = [defect] if config.defects and (defect := defect_of(category, index)) else []
    for defect in defects:
        add_defect(defect, frames=frames, sequence=sequence, folder=partial)
    record = {
        "settings": _settings(config),
        "frames": frames,
        "sequence": sequence,
        "captions": plan.captions,
        "defects": defects,
    }
    atomic_write(partial / RECORD_NAME, _json(record))
    partial.rename(final)
    return f"{category}/{plan.name}"


def _written(config: SyntheticConfig, root: Path, tasks: list[tuple[str, int]], num_processes: int) -> Generator[str]:
    """Names of the sequences as they are finished; rendering stops when the caller stops asking."""
    if num_processes == 1 or len(tasks) < 2:
        for task in tasks:
            yield write_sequence(config, root, *task)
        return
    with process_pool(num_processes, __name__) as pool:
        futures = [pool.submit(write_sequence, config, root, *task) for task in tasks]
        for future in as_completed(futures):
            yield future.result()


def _settings(config: SyntheticConfig) -> str:
    """Identity of what decides a single sequence's files."""
    parts = [_FORMAT_VERSION, config.seed, config.frames_per_sequence, config.image_size, config.defects]
    return fingerprint(parts)


def _is_complete(config: SyntheticConfig, root: Path, category: str, index: int) -> bool:
    path = root / category / f"synthetic_{index:05d}" / RECORD_NAME
    if not path.is_file():
        return False
    if json.loads(path.read_bytes())["settings"] != _settings(config):
        raise UserError(f"{path.parent}: written with other settings; choose another folder or delete it")
    return True


def _write_category(config: SyntheticConfig, root: Path, category: str) -> None:
    """Put the annotation files together from the records of all sequences of the category, also of earlier calls."""
    folder = root / category
    records = {
        path.parent.name: json.loads(path.read_bytes()) for path in sorted(folder.glob(f"synthetic_*/{RECORD_NAME}"))
    }
    splits: dict[str, list[list[Any]]] = {"train": [], "val": [], "test": []}
    batches: list[list[list[Any]]] = []
    for name, record in records.items():
        index = int(name.split("_")[1])
        entries = [[name, frame["frame_number"], frame["image"]["path"]] for frame in record["frames"]]
        splits[split_of(index)] += entries
        if split_of(index) == "test":
            batches += _eval_batches(config, category, index, entries)
    for frame in (frame for record in records.values() for frame in record["frames"]):
        frame["meta"] = {
            "frame_type": f"{split_of(int(frame['sequence_name'].split('_')[1]))}_known",
            "frame_splits": [SUBSET],
        }
    frames = [frame for record in records.values() for frame in record["frames"]]
    atomic_write(folder / "frame_annotations.jgz", encode_jgz(frames))
    atomic_write(folder / "sequence_annotations.jgz", encode_jgz([record["sequence"] for record in records.values()]))
    atomic_write(folder / "captions.json", _json({name: record["captions"] for name, record in records.items()}))
    (folder / "set_lists").mkdir(exist_ok=True)
    atomic_write(folder / "set_lists" / f"set_lists_{SUBSET}.json", _json(splits))
    (folder / "eval_batches").mkdir(exist_ok=True)
    atomic_write(folder / "eval_batches" / f"eval_batches_{SUBSET}.json", _json(batches))


def _eval_batches(
    config: SyntheticConfig, category: str, index: int, entries: list[list[Any]]
) -> list[list[list[Any]]]:
    """A few batches of one target frame, first, and known frames of the same sequence."""
    random = sequence_random(config.seed, category, index, 4)
    batches = []
    for target in random.permutation(len(entries))[:NUM_EVAL_TARGETS]:
        others = [k for k in range(len(entries)) if k != target]
        count = int(random.integers(1, min(MAX_EVAL_SOURCES, len(others)) + 1))
        batches.append([entries[target], *(entries[k] for k in random.permutation(others)[:count])])
    return batches


def _write_root(root: Path) -> None:
    """The root's own files list every category that is there, also from earlier calls."""
    categories = sorted(path.parent.name for path in root.glob("*/frame_annotations.jgz"))
    atomic_write(root / "category_to_subset_name_list.json", _json({category: [SUBSET] for category in categories}))
    records = [path for category in categories for path in sorted((root / category).glob(f"synthetic_*/{RECORD_NAME}"))]
    defects = {
        f"{path.parent.parent.name}/{path.parent.name}": json.loads(path.read_bytes())["defects"] for path in records
    }
    if any(defects.values()):
        atomic_write(root / "defects.json", _json({name: found for name, found in defects.items() if found}))


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
