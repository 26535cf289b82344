"""What can be told to be wrong with a run before any of it is done: hours later would be too late."""

from __future__ import annotations

import os
from pathlib import Path

from infra.errors import UserError
from infra.storage import StoragePath
from pipelines.config import RunConfig
from pipelines.runtime import RuntimeConfig
from preprocessing.config import CaptionsConfig


def check_settings(config: RunConfig, runtime: RuntimeConfig, *, stages: set[str]) -> None:
    """Check the settings of `stages` against each other and against this machine. Reads nothing but models' configs.

    Raises:
        UserError: something does not fit.
    """
    if runtime.use_gpu and stages - {"synth", "preprocess"}:
        check_gpus(runtime)
    if "captions" in stages and config.captions.source is not None:
        _check_captions_source(config.captions)
    if "base" in stages and config.base.source is None:
        _check_image_size(config)
    if "train" in stages:
        if config.train.batch_size < runtime.num_workers:
            raise UserError(
                f"train: batch_size {config.train.batch_size} is less than a sample for each of {runtime.num_workers} "
                "workers; take fewer --num-workers"
            )
        _check_network(config)


def check_held_out(config: RunConfig, shards_dir: StoragePath) -> None:
    """Check that finished shards hold something to evaluate.

    Raises:
        UserError: the split to evaluate holds no sequence of two frames.
    """
    from pipelines.evaluation_tasks import choose_objects
    from preprocessing.dataset import FrameIndex

    choose_objects(FrameIndex.open(shards_dir), config.evaluate)


def check_gpus(runtime: RuntimeConfig, *, num_gpus: int | None = None) -> None:
    """Check that this process has a GPU, and that a machine on its own has `num_gpus` (by default one per worker).

    Raises:
        UserError: it has not.
    """
    import torch

    found = torch.cuda.device_count()
    # On a cluster Ray finds the workers' GPUs, but the frozen parts run in this process.
    wanted = 1 if os.environ.get("RAY_ADDRESS") else num_gpus or runtime.num_workers
    if found < wanted:
        raise UserError(
            f"--use-gpu: needs {wanted} GPUs here (--num-workers is {runtime.num_workers}), PyTorch finds {found}; "
            "lower --num-workers, drop --use-gpu, or install a CUDA build of PyTorch"
        )


def _check_image_size(config: RunConfig) -> None:
    side, factor = config.preprocess.image_size, config.base.tiny.side_multiple
    if side % factor:
        raise UserError(
            f"preprocess: image_size {side} must be a multiple of {factor}, by which the stand-in's levels divide it"
        )


def _check_captions_source(config: CaptionsConfig) -> None:
    """Look at the model's config, unless the model is on the hub and so not known yet."""
    source = str(config.source)
    if Path(source).is_dir() or Path(source).is_absolute():
        from preprocessing.caption_model import check_source

        check_source(source)


def _check_network(config: RunConfig) -> None:
    """Build the network without values, unless its base is on the hub and so not known yet."""
    source = config.base.source
    if source is not None and not Path(source).is_dir():
        return
    from pipelines.network_size import count_parameters

    try:
        count_parameters(config)
    except ValueError as error:
        raise UserError(f"train.model: {error}") from error
