"""What one training step computes: floating-point operations of its posed views and of its prior images."""

from __future__ import annotations

from model.cost.flops import Flops, count_flops
from model.cost.products import Workload
from model.diffusion.objective import MIN_VIEWS_TO_HIDE_ONE
from model.unet import ViewDiffUNet
from pipelines.planning.network import base_sizes
from pipelines.settings.run import RunConfig, TrainConfig
from preprocessing.batches.shares import Schedule


def step_flops(
    config: TrainConfig, network: ViewDiffUNet, *, latent_size: tuple[int, int], text_length: int
) -> dict[str, Flops]:
    """By part of the network, of one optimizer step over all workers: `batch_size` samples of `num_views` views and, if
    prior preservation weighs anything, as many single images.

    `network` may be on the meta device; of its weights only shapes and `requires_grad` matter.
    """
    views = _workload(config.num_views, config.batch_size, latent_size, text_length)
    parts = count_flops(network, views)
    if config.diffusion.prior_weight > 0:
        prior = count_flops(network, _workload(1, config.batch_size, latent_size, text_length))
        parts = {name: flops + prior[name] for name, flops in parts.items()}
    return parts


def num_passes(config: TrainConfig, num_workers: int) -> int:
    """Backward passes of one worker in a step."""
    parts = 2 if config.diffusion.prior_weight > 0 else 1
    schedule = Schedule(
        batch_size=config.batch_size, micro_batch_size=config.micro_batch_size, rank=0, num_ranks=num_workers
    )
    return parts * schedule.num_micro_batches


def largest_share(config: TrainConfig, num_workers: int) -> int:
    """Samples of a step that the first worker takes; none takes more."""
    return -(-config.batch_size // num_workers)


def view_workload(config: RunConfig, num_samples: int) -> Workload:
    """A micro-batch of posed views of a run, whose base model need not exist yet."""
    return _workload(config.train.num_views, num_samples, latent_size(config), text_length(config))


def latent_size(config: RunConfig) -> tuple[int, int]:
    """Height and width of a run's latents, pixels."""
    side = config.preprocess.image_size // base_sizes(config.base).downsampling
    return side, side


def text_length(config: RunConfig) -> int:
    """Tokens of a run's captions."""
    return base_sizes(config.base).text_length


def _workload(num_views: int, num_samples: int, latent_size: tuple[int, int], text_length: int) -> Workload:
    return Workload(
        num_samples=num_samples,
        num_views=num_views,
        latent_size=latent_size,
        text_length=text_length,
        hidden_views=1 if num_views >= MIN_VIEWS_TO_HIDE_ONE else 0,
    )
