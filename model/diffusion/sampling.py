"""Generation: from noise, text, cameras and known views to the latents of new views (the paper, section 3.3).

What the request holds decides how: text only (no known view) or from images (known views).
model/diffusion/windows.py goes along a trajectory of more views than fit into one denoising call.

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

from model.config import SamplingConfig
from model.layers.projection import ProjectionLayer, Rendered
from model.layers.views import Scene, reorder_views

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

    scene: Scene  # of B samples of V views, see `Scene.neutral`
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
        for name, shape in (("cameras", self.scene.cameras.shape), ("known", self.known.shape)):
            if tuple(shape) != batch:
                raise ValueError(f"view request: {name} {tuple(shape)} must be (samples, views) {batch}")
        if len(self.text) != batch[0]:
            raise ValueError(f"view request: text {tuple(self.text.shape)} must start with {batch[0]} samples")
        for name, tensor, expected in (
            ("scene_bounds", self.scene.scene_bounds, (batch[0], 2, 3)),
            ("intensity", self.scene.intensity, (*batch, 2)),
        ):
            if tuple(tensor.shape) != expected:
                raise ValueError(f"view request: {name} {tuple(tensor.shape)} must be {expected}")
        if self.empty_text.shape != self.text.shape[1:]:
            shape = tuple(self.text.shape[1:])
            raise ValueError(f"view request: empty_text {tuple(self.empty_text.shape)} must be {shape}, like a text")
        if bool(self.known.all(dim=1).any()):
            sample = int(self.known.all(dim=1).nonzero()[0])
            raise ValueError(f"view request: all views of sample {sample} are known; leave one to be generated")

    def to(self, device: torch.device | str) -> ViewRequest:
        """The same request with every tensor on `device`."""
        moved = {f.name: getattr(self, f.name).to(device) for f in dataclasses.fields(self) if f.name != "seeds"}
        return ViewRequest(**moved, seeds=self.seeds)

    def reorder(self, order: Tensor) -> ViewRequest:
        """The same with each sample's views in another order, [B, V] indices."""
        return self.map_views(lambda values: reorder_views(values, order))

    def map_views(self, change: Callable[[Tensor], Tensor]) -> ViewRequest:
        """The same for other views, which `change` makes of each tensor [B, V, ...]."""
        known_latents, known = change(self.known_latents), change(self.known)
        return dataclasses.replace(self, scene=self.scene.map_views(change), known_latents=known_latents, known=known)

    def prepared_by(self, unet: DenoisesViews) -> ViewRequest:
        """The same with the geometry of the network's layers, which then need not be computed again. Raises ValueError
        for cameras or bounds that make no sense.
        """
        if self.scene.prepared is not None:
            return self
        size = (self.known_latents.shape[-2], self.known_latents.shape[-1])
        return dataclasses.replace(self, scene=unet.prepare(self.scene.check(), size))

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
    if torch.equal(order, torch.arange(order.shape[1], device=order.device).expand_as(order)):
        return denoise(unet, scheduler, request, config, noise=request.noise(), progress=progress)
    noise = reorder_views(request.noise(), order)
    latents = denoise(unet, scheduler, request.reorder(order), config, noise=noise, progress=progress)
    return reorder_views(latents, order.argsort(dim=1))


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
        unet(latents, torch.zeros_like(request.known, dtype=torch.long), text=request.text, scene=request.scene)
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
    request = request.prepared_by(unet)  # once for all steps
    asked = request if config.guidance_scale == 1 else _with_empty_text(request)
    known = request.known[:, :, None, None, None]
    latents = torch.where(known, request.known_latents, noise * solver.init_noise_sigma)
    for step, timestep in enumerate(solver.timesteps, start=1):
        predicted = _predict(unet, asked, latents, timestep, guidance_scale=config.guidance_scale)
        stepped = solver.step(predicted.flatten(0, 1), timestep, latents.flatten(0, 1)).prev_sample
        latents = torch.where(known, request.known_latents, stepped.unflatten(0, known.shape[:2]))
        if progress is not None:
            progress(step, config.num_steps)
    return latents


def _predict(
    unet: DenoisesViews, asked: ViewRequest, latents: Tensor, timestep: Tensor, *, guidance_scale: float
) -> Tensor:
    """The network's prediction [B, V, C, h, w], led away from the empty text when `asked` holds it too."""
    timesteps = torch.where(asked.known, 0, timestep)  # known views are clean at every step
    if guidance_scale == 1:
        return unet(latents, timesteps, text=asked.text, scene=asked.scene)
    without, with_text = unet(latents.repeat(2, 1, 1, 1, 1), timesteps, text=asked.text, scene=asked.scene).chunk(2)
    return without + guidance_scale * (with_text - without)


def _with_empty_text(request: ViewRequest) -> ViewRequest:
    """The request's samples with the empty text, then the same samples with their own."""
    return ViewRequest(
        scene=request.scene.repeat(2),
        text=torch.cat([request.empty_text.expand_as(request.text), request.text]),
        empty_text=request.empty_text,
        known_latents=request.known_latents.repeat(2, 1, 1, 1, 1),
        known=request.known.repeat(2, 1),
        seeds=request.seeds * 2,
    )
