"""Any number of views: a trajectory in windows, each conditioned on views made before (the paper, section 3.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor, nn

from model.config import SamplingConfig
from model.diffusion.sampling import DenoisesViews, RenderedDepth, ReportStep, ViewRequest, denoise, render_depth


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """How a long trajectory is cut."""

    num_views: int
    """Views of one denoising call."""
    num_context: int
    """How many of them, at most, were given or made before; in [1, num_views - 1]."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_context < self.num_views:
            raise ValueError(
                f"windows: num_context {self.num_context} must lie between 1 and num_views - 1 = {self.num_views - 1}"
            )


class Window(NamedTuple):
    """Indices of views along the trajectory."""

    context: tuple[int, ...]
    new: tuple[int, ...]


def plan_windows(num_views: int, *, known: Sequence[int], config: WindowConfig) -> tuple[Window, ...]:
    """Cut a trajectory into windows: every view that is not known is new in exactly one of them, in order.

    The context of a window is spread evenly over the views that are there. It includes the first and the last of them:
    the last one for continuity, the others so that an orbit closes.
    """
    there, waiting = list(known), [view for view in range(num_views) if view not in set(known)]
    plan = []
    while waiting:
        context = _spread(there, config.num_context)
        new = tuple(waiting[: config.num_views - len(context)])
        plan.append(Window(context, new))
        waiting, there = waiting[len(new) :], [*there, *new]
    return tuple(plan)


@torch.no_grad()
def generate_trajectory(
    unet: DenoisesViews,
    scheduler: SchedulerMixin,
    request: ViewRequest,
    config: SamplingConfig,
    *,
    windows: WindowConfig,
    progress: ReportStep | None = None,
) -> Tensor:
    """Latents [B, V, C, h, w] like `model.diffusion.sampling.generate_views`, for any number of views: window after
    window, in the views' order.

    Only the first window uses guidance; later ones take the object from their context views. Raises ValueError unless
    all samples know the same views.
    """
    if bool((request.known != request.known[:1]).any()):
        raise ValueError("trajectory: samples of one request must know the same views; generate them one by one")
    known = torch.nonzero(request.known[0])[:, 0].tolist()
    plan = plan_windows(request.known.shape[1], known=known, config=windows)
    noise, latents = request.noise(), request.known_latents.clone()
    for number, window in enumerate(plan):
        chosen = [*window.context, *window.new]
        part = _part(request, latents, chosen, num_known=len(window.context))
        window_config = config if number == 0 else dataclasses.replace(config, guidance_scale=1.0)
        report = _as_part(progress, done=number * config.num_steps, total=len(plan) * config.num_steps)
        made = denoise(unet, scheduler, part, window_config, noise=noise[:, chosen], progress=report)
        latents[:, list(window.new)] = made[:, len(window.context) :]
    return latents


@torch.no_grad()
def render_trajectory_depth(
    unet: nn.Module, request: ViewRequest, latents: Tensor, *, windows: WindowConfig
) -> RenderedDepth | None:
    """`model.diffusion.sampling.render_depth` of finished views [B, V, C, h, w], with no more of them in one call
    than when they were denoised. Views that were known are finished like any other.
    """
    parts: list[RenderedDepth] = []
    for window in plan_windows(request.known.shape[1], known=(), config=windows):
        chosen = [*window.context, *window.new]
        part = _part(request, latents, chosen, num_known=0)
        rendered = render_depth(unet, part, part.known_latents)
        if rendered is None:
            return None
        parts.append(RenderedDepth(*(values[:, len(window.context) :] for values in rendered)))
    return RenderedDepth(*(torch.cat(values, dim=1) for values in zip(*parts, strict=True)))


def _part(request: ViewRequest, latents: Tensor, chosen: Sequence[int], *, num_known: int) -> ViewRequest:
    """The request for the `chosen` views alone, the first `num_known` of them given by `latents` [B, V, C, h, w]."""
    return dataclasses.replace(
        request,
        scene=request.scene.map_views(lambda x: x[:, chosen]),
        known_latents=latents[:, chosen],
        known=torch.arange(len(chosen), device=latents.device).lt(num_known).expand(len(latents), -1),
    )


def _spread(values: Sequence[int], count: int) -> tuple[int, ...]:
    """At most `count` of the values, evenly spread, the last always among them and the first if count > 1."""
    if len(values) <= count:
        return tuple(values)
    if count == 1:
        return (values[-1],)
    return tuple(values[round(i * (len(values) - 1) / (count - 1))] for i in range(count))


def _as_part(progress: ReportStep | None, *, done: int, total: int) -> ReportStep | None:
    """Count one window's steps within the whole trajectory's."""
    if progress is None:
        return None
    return lambda step, _num_steps: progress(done + step, total)
