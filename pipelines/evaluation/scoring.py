"""Numbers of an evaluation: each object's generated views against the truth, beside what costs nothing to produce.

Baselines: the given view copied to every camera (`copy`), and the mean of all training frames (`mean`). Ceiling: the
truth through the autoencoder and back (`vae`), since nothing that is decoded from latents can be expected to be
better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from infra.errors import UserError
from infra.log import get_logger
from infra.storage.tables import read_table
from model.metrics.pixels import psnr, ssim
from pipelines.generation.generator import as_floats
from pipelines.generation.pictures import ObjectPictures
from preprocessing.picking import evenly
from preprocessing.shards.reading import FrameIndex, ShardReader

METHODS = {"": "ours", "_copy": "given view, copied", "_mean": "mean training image", "_vae": "autoencoder (ceiling)"}
SCORE_COLUMNS = tuple(f"{metric}{suffix}" for metric in ("psnr", "ssim") for suffix in METHODS)
REASON = "reason"  # the column that says why an object has no scores; null for the others
OBJECTS_SCHEMA = pa.schema(
    [
        ("category", pa.string()),
        ("sequence", pa.string()),
        ("known_frame", pa.int64()),
        ("target_frames", pa.list_(pa.int64())),
        *((name, pa.float64()) for name in SCORE_COLUMNS),
        (REASON, pa.string()),
    ]
)  # of objects.parquet
MAX_MEAN_FRAMES = 10_000  # the mean image of more differs by less than one grey level


def mean_training_image(index: FrameIndex, reader: ShardReader) -> np.ndarray:
    """Mean of the training frames, uint8 [H, W, 3]; of evenly spread ones when there are very many. Those that cannot
    be read are left out, and told of.

    Raises UserError when there is no training frame, or none can be read.
    """
    rows = np.array([row for sequence in index.sequences("train") for row in sequence.rows])
    if len(rows) == 0:
        raise UserError("split train of the shards holds no sequence: preprocess with a training share above 0")
    rows = rows[evenly(len(rows), MAX_MEAN_FRAMES)]
    side = index.image_size
    total, errors = np.zeros((side, side, 3)), list[Exception]()
    for row in rows:
        try:
            total += reader.image(int(row))
        except (UserError, OSError) as error:
            errors.append(error)
    if len(errors) == len(rows):
        raise UserError(f"none of the {len(rows)} training frames can be read ({errors[0]})")
    if errors:
        told = "the mean training image is without %d of %d frames, which cannot be read (%s)"
        get_logger("evaluate").warning(told, len(errors), len(rows), errors[0])
    return (total / (len(rows) - len(errors))).round().astype(np.uint8)


def score(pictures: ObjectPictures, mean_image: np.ndarray) -> dict[str, float]:
    """PSNR (dB) and SSIM of an object, each the mean over its views, for every method of SCORE_COLUMNS."""
    assert pictures.truth is not None
    assert pictures.known is not None
    assert pictures.reconstructed is not None
    truth = as_floats(pictures.truth)
    candidates = {
        "": as_floats(pictures.generated),
        "_copy": as_floats(pictures.known[None]).expand_as(truth),
        "_mean": as_floats(mean_image[None]).expand_as(truth),
        "_vae": as_floats(pictures.reconstructed),
    }
    scores = {}
    for suffix, candidate in candidates.items():
        scores[f"psnr{suffix}"] = _mean(psnr(candidate, truth))
        scores[f"ssim{suffix}"] = _mean(ssim(candidate, truth))
    return scores


def psnr_per_view(pictures: ObjectPictures) -> list[float]:
    """PSNR (dB) of each generated view."""
    assert pictures.truth is not None
    return psnr(as_floats(pictures.generated), as_floats(pictures.truth)).tolist()


def summarize(columns: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Means over the objects that have scores, how many these are, and how far the model is ahead of each baseline
    (PSNR, dB) with its standard error.
    """
    good = scored(columns)
    summary = {column: float(np.mean(good[column])) for column in SCORE_COLUMNS}
    ours = np.array(good["psnr"])
    gains = {baseline: ours - np.array(good[f"psnr_{baseline}"]) for baseline in ("copy", "mean")}
    for baseline, gain in gains.items():
        summary[f"psnr_gain_{baseline}"] = float(gain.mean())
        summary[f"psnr_gain_{baseline}_error"] = float(gain.std() / np.sqrt(len(gain)))
    summary["share_ahead_of_both"] = float(np.mean((gains["copy"] > 0) & (gains["mean"] > 0)))
    return summary | {"num_scored_objects": len(ours)}


def scored(columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """The columns of objects.parquet without the objects that have no scores."""
    keep = [reason is None for reason in columns[REASON]]
    return {name: [value for value, kept in zip(values, keep, strict=True) if kept] for name, values in columns.items()}


def read_objects(path: Path) -> dict[str, list[Any]]:
    """The columns of an evaluation's objects.parquet, a value per object.

    Raises:
        UserError: it is damaged, or has other columns than this code writes.
    """
    remedy = f"delete {path.parent} and evaluate again"
    columns: dict[str, list[Any]] = read_table(path, OBJECTS_SCHEMA, name=str(path), remedy=remedy).to_pydict()
    return columns


class CommonPsnr(NamedTuple):
    """Mean PSNR (dB) of two evaluations over the objects that both have scores for."""

    first: float
    second: float
    num_objects: int


def common_psnr(first: Path, second: Path) -> CommonPsnr:
    """Compare two evaluations, given the objects.parquet of each, over the same objects seen from the same frames:
    those that failed in one of them count in neither.

    Raises UserError when there is none.
    """
    scores = [_psnr_by_object(path) for path in (first, second)]
    common = sorted(scores[0].keys() & scores[1].keys())
    if not common:
        raise UserError(f"{first} and {second} have scores of no common object: nothing can be compared")
    ours, theirs = (float(np.mean([each[name] for name in common])) for each in scores)
    return CommonPsnr(ours, theirs, num_objects=len(common))


def _psnr_by_object(path: Path) -> dict[tuple[Any, ...], float]:
    good = scored(read_objects(path))
    frames = [tuple(numbers) for numbers in good["target_frames"]]
    names = zip(good["category"], good["sequence"], good["known_frame"], frames, strict=True)
    return dict(zip(names, good["psnr"], strict=True))


def _mean(values: Tensor) -> float:
    return float(torch.mean(values))
