"""Numbers of an evaluation: each object's generated views against the truth, beside what costs nothing to produce.

Baselines: the given view copied to every camera (`copy`), and the mean of all training frames (`mean`). Ceiling: the
truth through the autoencoder and back (`vae`), since nothing that is decoded from latents can be expected to be
better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from infra.errors import UserError
from infra.tables import read_table
from model.metrics import psnr, ssim
from pipelines.generator import as_floats
from pipelines.pictures import ObjectPictures
from preprocessing.dataset import FrameIndex, ShardReader

METHODS = {"": "ours", "_copy": "given view, copied", "_mean": "mean training image", "_vae": "autoencoder (ceiling)"}
SCORE_COLUMNS = tuple(f"{metric}{suffix}" for metric in ("psnr", "ssim") for suffix in METHODS)
OBJECTS_SCHEMA = pa.schema(
    [
        ("category", pa.string()),
        ("sequence", pa.string()),
        ("known_frame", pa.int64()),
        ("target_frames", pa.list_(pa.int64())),
        *((column, pa.float64()) for column in SCORE_COLUMNS),
    ]
)
MAX_MEAN_FRAMES = 10_000  # the mean image of more differs by less than one grey level


def mean_training_image(index: FrameIndex, reader: ShardReader) -> np.ndarray:
    """Mean of the training frames, uint8 [H, W, 3]; of evenly spread ones when there are very many.

    Raises UserError when there is no training frame.
    """
    rows = np.array([row for sequence in index.sequences("train") for row in sequence.rows])
    if len(rows) == 0:
        raise UserError("split train of the shards holds no sequence: preprocess with a training share above 0")
    if len(rows) > MAX_MEAN_FRAMES:
        rows = rows[np.linspace(0, len(rows) - 1, MAX_MEAN_FRAMES).round().astype(int)]
    total = np.zeros(reader.image(int(rows[0])).shape, np.float64)
    for row in rows:
        total += reader.image(int(row))
    return (total / len(rows)).round().astype(np.uint8)


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
    """Means over the objects, and how far the model is ahead of each baseline (PSNR, dB) with its standard error."""
    summary = {column: float(np.mean(columns[column])) for column in SCORE_COLUMNS}
    ours = np.array(columns["psnr"])
    gains = {baseline: ours - np.array(columns[f"psnr_{baseline}"]) for baseline in ("copy", "mean")}
    for baseline, gain in gains.items():
        summary[f"psnr_gain_{baseline}"] = float(gain.mean())
        summary[f"psnr_gain_{baseline}_error"] = float(gain.std() / np.sqrt(len(gain)))
    summary["share_ahead_of_both"] = float(np.mean((gains["copy"] > 0) & (gains["mean"] > 0)))
    return summary


def read_objects(path: Path) -> dict[str, list[Any]]:
    """The columns of an evaluation's objects.parquet, a value per object.

    Raises:
        UserError: it is damaged, or has other columns than this code writes.
    """
    remedy = f"delete {path.parent} and evaluate again"
    columns: dict[str, list[Any]] = read_table(path, OBJECTS_SCHEMA, name=str(path), remedy=remedy).to_pydict()
    return columns


def _mean(values: Tensor) -> float:
    return float(torch.mean(values))
