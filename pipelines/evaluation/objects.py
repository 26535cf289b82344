"""What an evaluation generates: which objects, which of their frames is given, which are wanted.

Pure functions of the config and the index.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from infra.errors import UserError
from infra.provenance.fingerprint import fingerprint
from model.config import SamplingConfig
from model.trajectories import angles, orbit_like
from pipelines.generation.task import UNIT_CUBE, EvaluationTask, training_cameras
from pipelines.settings.run import EvaluateConfig
from preprocessing.picking import evenly
from preprocessing.shards.reading import FrameIndex, SequenceRecord

# A sequence, the name under which its pictures are kept, and the rows of the given and the wanted frames.
Chosen = tuple[SequenceRecord, str, tuple[int, ...]]


def choose_objects(index: FrameIndex, config: EvaluateConfig) -> list[EvaluationTask]:
    """Objects of the split, categories in turn, each from one given view.

    Guidance is off: the given view says what is wanted. Raises UserError when the split holds no sequence of at least
    two frames.
    """
    chosen = _batches(index, config) if config.views == "eval_batches" else _around(index, config)
    sampling = SamplingConfig(num_steps=config.sampling.num_steps, guidance_scale=1.0)
    return [
        EvaluationTask(
            name=(sequence.category, label),
            caption=sequence.captions[0],
            cameras=index.cameras(rows),
            scene_bounds=sequence.scene_bounds,
            rows=rows,
            sampling=sampling,
            seed=_seed(config, sequence.category, label),
        )
        for sequence, label, rows in chosen
    ]


def _around(index: FrameIndex, config: EvaluateConfig) -> list[Chosen]:
    """Objects with a given frame and others around them."""
    sequences = _in_turn(index, config)
    if not sequences:
        raise UserError(
            f"split {config.split} of the shards holds no sequence of 2 frames or more: "
            "preprocess more captures or give that split a larger share"
        )
    chosen = []
    for sequence in sequences[: config.num_objects]:
        seed = _seed(config, sequence.category, sequence.sequence)
        rows = choose_frames(index, sequence, num_views=config.num_views, seed=seed)
        chosen.append((sequence, sequence.sequence, rows))
    return chosen


def _batches(index: FrameIndex, config: EvaluateConfig) -> list[Chosen]:
    """Evaluation batches of the split's sequences whose target and first given frame are stored, each such pair once,
    evenly picked.
    """
    sequences = {(item.category, item.sequence): item for item in index.sequences(config.split)}
    found: dict[tuple[str, str], Chosen] = {}
    for batch in index.manifest["eval_batches"]:
        sequence = sequences.get((batch["category"], batch["sequence"]))
        if sequence is None:
            continue
        rows_by_number = dict(zip(index.frame_numbers[sequence.rows].tolist(), sequence.rows, strict=True))
        target, given = batch["frame_numbers"][:2]
        if target in rows_by_number and given in rows_by_number:
            label = f"{sequence.sequence}#{target} from {given}"
            found[sequence.category, label] = (sequence, label, (rows_by_number[given], rows_by_number[target]))
    chosen = list(found.values())
    if not chosen:
        raise UserError(
            f"split {config.split} of the shards has none of their {len(index.manifest['eval_batches'])} evaluation "
            "batches: preprocess with --preprocess.subset naming a subset that has some (see `viewdiff inspect`), take "
            "another --evaluate.split, or evaluate with --evaluate.views around"
        )
    return [chosen[pick] for pick in evenly(len(chosen), config.num_objects)]


def choose_texts(index: FrameIndex, config: EvaluateConfig) -> list[EvaluationTask]:
    """Objects from the captions of held-out sequences alone, on an orbit like the training cameras, with guidance."""
    if config.num_text_objects == 0:
        return []
    cameras = orbit_like(training_cameras(index), config.num_views)
    sequences = _in_turn(index, config)
    start = min(config.num_objects, len(sequences))  # prefer others than the evaluated ones
    captions = [sequence.captions[0] for sequence in [*sequences[start:], *sequences[:start]]]
    names = [f"text-{number}" for number in range(config.num_text_objects)]
    return [
        EvaluationTask((name,), caption, cameras, UNIT_CUBE, (), config.sampling, _seed(config, name))
        for name, caption in zip(names, captions, strict=False)
    ]


def choose_frames(index: FrameIndex, sequence: SequenceRecord, *, num_views: int, seed: int) -> tuple[int, ...]:
    """Rows of the given frame, drawn by `seed`, and of at most num_views - 1 others, spread around the object."""
    generator = np.random.default_rng(seed)
    rows = np.array(sequence.rows)
    known = int(generator.integers(len(rows)))
    others = np.delete(rows, known)
    azimuth, _ = angles(index.cameras(others))
    around = others[np.argsort(azimuth.numpy(), kind="stable")]
    count = min(num_views - 1, len(around))
    picks = (generator.random() + np.arange(count)) * len(around) / count
    return (int(rows[known]), *(int(row) for row in around[picks.astype(int) % len(around)]))


def _in_turn(index: FrameIndex, config: EvaluateConfig) -> list[SequenceRecord]:
    """The split's sequences in an order drawn by the seed, categories in turn so that any number is balanced."""
    categories: dict[str, list[SequenceRecord]] = defaultdict(list)
    for sequence in index.sequences(config.split):
        if len(sequence.rows) >= 2:
            categories[sequence.category].append(sequence)
    ranked = []
    for category, sequences in categories.items():
        drawn = sorted(sequences, key=lambda item: _seed(config, category, item.sequence))
        ranked += [(rank, category, sequence) for rank, sequence in enumerate(drawn)]
    return [sequence for _, _, sequence in sorted(ranked, key=lambda item: item[:2])]


def _seed(config: EvaluateConfig, *name: str) -> int:
    """A seed of its own for every object, whatever else is evaluated."""
    return int(fingerprint([config.seed, *name]), 16) % 2**63
