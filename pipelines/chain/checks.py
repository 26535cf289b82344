"""What can be told to be wrong with a run before any of it is done: hours later would be too late."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from infra.errors import UserError
from infra.storage.files import StoragePath
from model.config import STAND_IN_TIMESTEPS
from pipelines.chain.table import STAGES
from pipelines.settings.run import RunConfig
from pipelines.spine.runtime import RuntimeConfig, num_gpus
from pipelines.spine.sources import refusing_base
from preprocessing.config import CaptionsConfig


def check_settings(config: RunConfig, runtime: RuntimeConfig, *, stages: set[str]) -> None:
    """Check the settings of `stages` against each other and against this machine. Of models it reads the configs and
    the headers of weight files.

    Raises:
        UserError: something does not fit.
    """
    if runtime.use_gpu and any(stage.on_gpu for stage in STAGES if stage.name in stages):
        _check_worker_gpus(runtime)
    if "captions" in stages and config.captions.source is not None:
        _check_captions_source(config.captions)
    if "base" in stages:
        check_base_model(config)
    check_sampling(config, config.base.source, stages=stages)
    if "train" in stages:
        if config.train.batch_size < runtime.num_workers:
            raise UserError(
                f"train: batch_size {config.train.batch_size} is less than a sample for each of {runtime.num_workers} "
                "workers; take fewer --num-workers"
            )
        _check_network(config)


def check_base_on_hub(config: RunConfig, revision: str, *, stages: set[str]) -> None:
    """Fetch the configs of the base model, an id on the hub, and check what `check_settings` does not know of it. Its
    weights stay on the hub until stage base.

    Raises:
        UserError: something does not fit, or the hub does not give it.
    """
    from model.base.checks import check_configs
    from model.base.folder import open_folder
    from pipelines.planning.network import meta_network

    assert config.base.source is not None
    with refusing_base():
        folder = open_folder(config.base.source, revision)
        check_configs(folder)
    copy = replace(config, base=replace(config.base, source=str(folder.path)))
    _check_image_size(copy)
    check_sampling(copy, copy.base.source, stages=stages)
    if "train" in stages:
        meta_network(copy)


def check_base_model(config: RunConfig) -> None:
    """Check the base model, as far as it is on this disk, and the size of the shards' pictures.

    Raises:
        UserError: something does not fit.
    """
    if config.base.source is not None:
        _check_base(config.base.source)
    _check_image_size(config)


def check_held_out(config: RunConfig, shards_dir: StoragePath) -> None:
    """Check that finished shards hold something to evaluate.

    Raises:
        UserError: the split to evaluate holds no sequence of two frames.
    """
    from pipelines.evaluation.objects import choose_objects
    from preprocessing.shards.reading import FrameIndex

    choose_objects(FrameIndex.open(shards_dir), config.evaluate)


def check_sampling(config: RunConfig, source: str | None, *, stages: set[str]) -> None:
    """Check that `stages` denoise in no more steps than the noise schedule of the base model `source` has, unless that
    is on the hub and so not known yet.

    Raises:
        UserError: they take more.
    """
    num_timesteps = _num_timesteps(source)
    for stage, option, num_steps in (
        ("latents", "--latents.prior-num-steps", config.latents.prior_num_steps),
        ("evaluate", "--evaluate.sampling.num-steps", config.evaluate.sampling.num_steps),
    ):
        if stage in stages and num_timesteps is not None and num_steps > num_timesteps:
            raise UserError(
                f"{option} {num_steps}: the base model's noise schedule has only {num_timesteps} steps; take fewer"
            )


def _check_worker_gpus(runtime: RuntimeConfig) -> None:
    """Stages compute in workers only. On a cluster these have their GPUs elsewhere, and Ray waits until there are
    enough; a machine on its own has one for each, or never will.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    found = num_gpus()
    if found < runtime.num_workers:
        raise UserError(
            f"--use-gpu: --num-workers {runtime.num_workers} needs as many GPUs on this machine, PyTorch finds {found}"
            "; set RAY_ADDRESS to use a Ray cluster's, lower --num-workers, drop --use-gpu, or install a CUDA build of "
            "PyTorch"
        )


def _check_image_size(config: RunConfig) -> None:
    """Check that the base model can take the shards' pictures, and the network their latents."""
    from pipelines.planning.network import base_sizes

    side, multiple = config.preprocess.image_size, base_sizes(config.base).side_multiple
    if side % multiple:
        name = "the stand-in" if config.base.source is None else config.base.source
        raise UserError(
            f"preprocess: image_size {side} must be a multiple of {multiple}, because autoencoder and U-Net of the "
            f"base model, {name}, halve a picture's sides; {max(1, round(side / multiple)) * multiple} is near"
        )


def _num_timesteps(source: str | None) -> int | None:
    """Steps of a base model's noise schedule; None where they are not known before it is read."""
    if source is None:
        return STAND_IN_TIMESTEPS
    from pipelines.planning.network import read_folder

    noise = read_folder(source, lambda folder: folder.read_json("scheduler/scheduler_config.json")) or {}
    number = noise.get("num_train_timesteps")
    return number if isinstance(number, int) and number > 0 else None  # what is wrong with it, _check_base says


def _check_captions_source(config: CaptionsConfig) -> None:
    """Look at the model's config, unless the model is on the hub and so not known yet."""
    source = str(config.source)
    if Path(source).is_dir() or Path(source).is_absolute():
        from preprocessing.captions.blip2 import check_source

        check_source(source)


def _check_base(source: str) -> None:
    """Look at the base model's folder, unless it is on the hub and so not known yet, or was read and is gone."""
    if not Path(source).exists():
        return
    from model.base.stable_diffusion import check_base

    with refusing_base():
        check_base(source)


def _check_network(config: RunConfig) -> None:
    """Build the network without values, unless its base is on the hub and so not known yet."""
    from pipelines.planning.network import assumption, meta_network

    if not assumption(config.base):
        meta_network(config)
