"""Generation: from noise, text, cameras and known views to the latents of new views (the paper, section 3.3).

What the request holds decides how: text only (no known view) or from images (known views). model/windows.py goes along
a trajectory of more views than fit into one denoising call.

Shape letters: B samples, V views, C latent channels, h × w latent pixels, L text tokens, D text channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from diffusers import UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor, nn

from model.cameras import Cameras
from model.conditioning import NEUTRAL_INTENSITY
from model.config import SamplingConfig
from model.projection import ProjectionLayer, Rendered
from model.views import Scene

SMALLEST_OPACITY = 1e-3  # a ray that hits less has no depth to speak of

ReportStep = Callable[[int, int], None]  # called with (calls of the network that are done, all of them)


class DenoisesViews(Protocol):
    """What sampling needs of `ViewDiffUNet`."""

    def __call__(self, latents: Tensor, timesteps: Tensor, *, text: Tensor, scene: Scene) -> Tensor: ...

    def prepare(self, scene: Scene, latent_size: tuple[int, int]) -> Scene: ...


@dataclass(frozen=True, eq=False)
class ViewRequest:
    """What to generate: B samples of V views each.

    Any views but all of a sample may be `known`: they are given by their clean scaled latents. `known_latents` of other
    views are never read. Raises ValueError on shapes that do not fit.
    """

    cameras: Cameras  # batch shape [B, V]
    scene_bounds: Tensor  # [B, 2, 3] world units
    text: Tensor  # [B, L, D]
    empty_text: Tensor  # [L, D] what guidance leads away from
    known_latents: Tensor  # [B, V, C, h, w]
    known: Tensor  # [B, V] bool
    seeds: tuple[int, ...]  # one per sample: its noise, whatever else is in the batch

    def __post_init__(self) -> None:
        if self.known_latents.ndim != 5 or 0 in self.known_latents.shape[:2]:
            raise ValueError(
                f"view request: known_latents {tuple(self.known_latents.shape)} must be [B, V, C, h, w], B and V ≥ 1"
            )
        if self.known.dtype != torch.bool:
            raise ValueError(f"view request: known has dtype {self.known.dtype}, must be bool")
        batch = (len(self.seeds), self.known_latents.shape[1])
        for name, tensor in (("cameras", self.cameras), ("known", self.known), ("known_latents", self.known_latents)):
            if tuple(tensor.shape[:2]) != batch:
                raise ValueError(f"view request: {name} {tuple(tensor.shape)} must start with (samples, views) {batch}")
        for name, tensor in (("text", self.text), ("scene_bounds", self.scene_bounds)):
            if len(tensor) != batch[0]:
                raise ValueError(f"view request: {name} {tuple(tensor.shape)} must start with {batch[0]} samples")
        if bool(self.known.all(dim=1).any()):
            sample = int(self.known.all(dim=1).nonzero()[0])
            raise ValueError(f"view request: all views of sample {sample} are known; leave one to be generated")

    def to(self, device: torch.device | str) -> ViewRequest:
        """The same request with every tensor on `device`."""
        moved = {f.name: getattr(self, f.name).to(device) for f in dataclasses.fields(self) if f.name != "seeds"}
        return ViewRequest(**moved, seeds=self.seeds)

    def reorder(self, order: Tensor) -> ViewRequest:
        """The same with each sample's views in another order, [B, V] indices."""
        rows = torch.arange(len(order), device=order.device)[:, None]
        return dataclasses.replace(
            self,
            cameras=self.cameras[rows, order],
            known_latents=self.known_latents[rows, order],
            known=self.known[rows, order],
        )

    def scene(self) -> Scene:
        """What the network is told of the views: cameras, bounds and the neutral intensity."""
        intensity = self.scene_bounds.new_tensor(NEUTRAL_INTENSITY).expand(*self.known.shape, 2)
        return Scene(self.cameras, self.scene_bounds, intensity)

    def noise(self) -> Tensor:
        """Unit noise [B, V, C, h, w].

        Each sample's is drawn from its own seed on the CPU: the same on every device and in every batch.
        """
        shape, device = self.known_latents.shape[1:], self.known_latents.device
        samples = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in self.seeds]
        return torch.stack(samples).to(device)


@torch.no_grad()
def generate_views(
    unet: DenoisesViews,
    scheduler: SchedulerMixin,
    request: ViewRequest,
    config: SamplingConfig,
    *,
    progress: ReportStep | None = None,
) -> Tensor:
    """Latents [B, V, C, h, w] (scaled, clean) of all views; those of known views come back as given.

    `scheduler` is the base model's training scheduler: UniPC takes the noise schedule and the kind of prediction from
    its config. `progress` is told after every denoising step.
    """
    # Known views first: the projection layers take the noise level of the volume from the last view.
    order = request.known.int().argsort(dim=1, descending=True, stable=True)
    rows = torch.arange(len(order), device=order.device)[:, None]
    noise = request.noise()[rows, order]
    latents = denoise(unet, scheduler, request.reorder(order), config, noise=noise, progress=progress)
    return latents[rows, order.argsort(dim=1)]


class RenderedDepth(NamedTuple):
    """What the projection layer with the finest features sees, [B, V, h', w'] each."""

    depth: Tensor  # mean depth along z of the camera of what a ray hits, world units
    opacity: Tensor  # in [0, 1]


@torch.no_grad()
def render_depth(unet: nn.Module, request: ViewRequest, latents: Tensor) -> RenderedDepth | None:
    """Depth and opacity of finished views, latents [B, V, C, h, w], by one more call of the network at t = 0.

    None for a network without projection layers.
    """
    rendered: list[Rendered] = []
    layers = [module for module in unet.modules() if isinstance(module, ProjectionLayer)]
    hooks = [
        layer.renderer.register_forward_hook(lambda _module, _inputs, output: rendered.append(output))
        for layer in layers
    ]
    try:
        unet(latents, torch.zeros_like(request.known, dtype=torch.long), text=request.text, scene=request.scene())
    finally:
        for hook in hooks:
            hook.remove()
    if not rendered:
        return None
    finest = max(rendered, key=lambda output: output.depth.shape[-2] * output.depth.shape[-1])
    opacity = finest.opacity[:, :, 0]
    return RenderedDepth(finest.depth[:, :, 0] / opacity.clamp_min(SMALLEST_OPACITY), opacity)


def denoise(
    unet: DenoisesViews,
    scheduler: SchedulerMixin,
    request: ViewRequest,
    config: SamplingConfig,
    *,
    noise: Tensor,
    progress: ReportStep | None,
) -> Tensor:
    """`generate_views` from given unit noise [B, V, C, h, w]."""
    solver = UniPCMultistepScheduler.from_config(scheduler.config)
    solver.set_timesteps(config.num_steps, device=noise.device)
    asked = request if config.guidance_scale == 1 else _with_empty_text(request)
    known = request.known[:, :, None, None, None]
    latents = torch.where(known, request.known_latents, noise * solver.init_noise_sigma)
    scene = unet.prepare(asked.scene().check(), (latents.shape[-2], latents.shape[-1]))  # once for all steps
    for step, timestep in enumerate(solver.timesteps, start=1):
        predicted = _predict(unet, asked, scene, latents, timestep, guidance_scale=config.guidance_scale)
        stepped = solver.step(predicted.flatten(0, 1), timestep, latents.flatten(0, 1)).prev_sample
        latents = torch.where(known, request.known_latents, stepped.unflatten(0, known.shape[:2]))
        if progress is not None:
            progress(step, config.num_steps)
    return latents


def _predict(
    unet: DenoisesViews, asked: ViewRequest, scene: Scene, latents: Tensor, timestep: Tensor, *, guidance_scale: float
) -> Tensor:
    """The network's prediction [B, V, C, h, w], led away from the empty text when `asked` holds it too."""
    timesteps = torch.where(asked.known, 0, timestep)  # known views are clean at every step
    if guidance_scale == 1:
        return unet(latents, timesteps, text=asked.text, scene=scene)
    without, with_text = unet(latents.repeat(2, 1, 1, 1, 1), timesteps, text=asked.text, scene=scene).chunk(2)
    return without + guidance_scale * (with_text - without)


def _with_empty_text(request: ViewRequest) -> ViewRequest:
    """The request's samples with the empty text, then the same samples with their own."""
    return ViewRequest(
        cameras=Cameras.cat([request.cameras, request.cameras]),
        scene_bounds=request.scene_bounds.repeat(2, 1, 1),
        text=torch.cat([request.empty_text.expand_as(request.text), request.text]),
        empty_text=request.empty_text,
        known_latents=request.known_latents.repeat(2, 1, 1, 1, 1),
        known=request.known.repeat(2, 1),
        seeds=request.seeds * 2,
    )
