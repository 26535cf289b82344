"""A trained model and its base model, loaded once: samples in, pictures out.

Knows nothing of Ray; `pipelines/serving/deployment.py` puts it on a cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from infra.errors import UserError
from model.base.stable_diffusion import BaseModel, load_base, side_multiple
from model.cameras import Cameras
from model.config import SamplingConfig
from model.diffusion.sampling import ReportStep, ViewRequest, generate_views, render_depth
from model.diffusion.windows import WindowConfig, generate_trajectory, render_trajectory_depth
from model.framing import framing
from model.layers.views import Scene
from model.unet import ViewDiffUNet

DECODED_AT_ONCE = 32  # views; the autoencoder's activations are the largest of all


@dataclass(frozen=True, eq=False)
class SampleRequest:
    """One object to generate: plain arrays, so that it can travel between processes."""

    world_to_camera: np.ndarray  # float32 [V, 4, 4]
    intrinsics: np.ndarray  # float32 [V, 3, 3] in pixels of image_size
    image_size: tuple[int, int]  # (height, width)
    scene_bounds: np.ndarray  # float32 [2, 3] world units
    text: str
    known_images: np.ndarray  # uint8 [K, H, W, 3] pictures of the first K views, K < V
    seed: int
    sampling: SamplingConfig
    windows: WindowConfig | None = None  # None: all views in one denoising call

    def __post_init__(self) -> None:
        cameras = Cameras(torch.as_tensor(self.world_to_camera), torch.as_tensor(self.intrinsics), self.image_size)
        found = framing(cameras, torch.as_tensor(self.scene_bounds))
        if found.missed == found.total:
            raise UserError(f"cameras of “{self.text}”: {found}; {found.expected}")

    @property
    def batch_key(self) -> tuple[object, ...]:
        """Requests with equal keys can be denoised together."""
        return len(self.world_to_camera), len(self.known_images), self.image_size, self.sampling, self.windows


@dataclass(frozen=True, eq=False)
class GeneratedSample:
    """Pictures of all V views of a request; those of known views have been through the autoencoder."""

    images: np.ndarray  # uint8 [V, H, W, 3]
    depth: np.ndarray | None  # float32 [V, h, w] world units; None for a model without projection layers
    opacity: np.ndarray | None  # float32 [V, h, w] in [0, 1]


class SampleGenerator:
    """The frozen parts and the multi-view U-Net on one device."""

    def __init__(self, unet: ViewDiffUNet, base: BaseModel, *, device: str = "cpu") -> None:
        self._unet = unet.to(device).eval().requires_grad_(False)
        self._base = base.coders_to(device).frozen()
        self._device = device

    @classmethod
    def load(cls, model_dir: Path, base: Path | str, *, device: str = "cpu") -> SampleGenerator:
        """Read a model and its base model, a diffusers folder or hub id.

        Raises UserError when one of them does not hold what it should or they do not belong together.
        """
        try:
            unet, parts = ViewDiffUNet.from_pretrained(model_dir), load_base(base)
        except ValueError as error:
            raise UserError(str(error)) from error
        _check_match(unet, parts, model_dir=model_dir, base=base)
        return cls(unet, parts, device=device)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the pictures that the model was trained on."""
        side = self._unet.unet.config.sample_size * self._base.downsampling
        return side, side

    @property
    def num_timesteps(self) -> int:
        """Steps of the noise schedule: denoising has no more."""
        return int(self._base.scheduler.config.num_train_timesteps)

    @property
    def side_multiple(self) -> int:
        """Pictures must have sides that are multiples of this many pixels."""
        return side_multiple(self._base.vae.config, self._base.unet.config)

    def generate(
        self, requests: Sequence[SampleRequest], *, progress: ReportStep | None = None
    ) -> list[GeneratedSample]:
        """Results in the requests' order; requests of equal shape are denoised as one batch."""
        groups: dict[tuple[object, ...], list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(request.batch_key, []).append(number)
        results: dict[int, GeneratedSample] = {}
        for numbers in groups.values():
            samples = self._generate_equal([requests[number] for number in numbers], progress)
            results.update(zip(numbers, samples, strict=True))
        return [results[number] for number in range(len(requests))]

    @torch.no_grad()
    def reconstruct(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 [N, H, W, 3] through the autoencoder and back: the best that generated latents could give."""
        return self._decode(self._encode(images))

    @torch.no_grad()
    def _generate_equal(self, requests: Sequence[SampleRequest], progress: ReportStep | None) -> list[GeneratedSample]:
        request, first = self._view_request(requests), requests[0]
        if first.windows is None:
            request = request.prepared_by(self._unet)  # for the depth, too
            latents = generate_views(self._unet, self._base.scheduler, request, first.sampling, progress=progress)
        else:
            latents = generate_trajectory(
                self._unet, self._base.scheduler, request, first.sampling, windows=first.windows, progress=progress
            )
        images = self._decode(latents.flatten(0, 1)).reshape(*latents.shape[:2], *first.image_size, 3)
        if first.windows is None:
            rendered = render_depth(self._unet, request, latents)
        else:
            rendered = render_trajectory_depth(self._unet, request, latents, windows=first.windows)
        if rendered is None:
            return [GeneratedSample(pictures, None, None) for pictures in images]
        depth, opacity = rendered.depth.float().cpu().numpy(), rendered.opacity.float().cpu().numpy()
        return [GeneratedSample(*parts) for parts in zip(images, depth, opacity, strict=True)]

    def _view_request(self, requests: Sequence[SampleRequest]) -> ViewRequest:
        num_views, num_known = len(requests[0].world_to_camera), len(requests[0].known_images)
        known_latents = self._encode(np.concatenate([request.known_images for request in requests]))
        height, width = (side // self._base.downsampling for side in requests[0].image_size)
        channels = self._base.vae.config.latent_channels
        latents = torch.zeros(len(requests), num_views, channels, height, width, device=self._device)
        latents[:, :num_known] = known_latents.reshape(len(requests), num_known, channels, height, width)
        texts = {text: number for number, text in enumerate(dict.fromkeys(["", *(r.text for r in requests)]))}
        embeddings = self._base.encode_text(list(texts))
        cameras = Cameras(
            self._stack([request.world_to_camera for request in requests]),
            self._stack([request.intrinsics for request in requests]),
            requests[0].image_size,
        )
        return ViewRequest(
            scene=Scene.neutral(cameras, self._stack([request.scene_bounds for request in requests])),
            text=embeddings[[texts[request.text] for request in requests]],
            empty_text=embeddings[0],
            known_latents=latents,
            known=(torch.arange(num_views, device=self._device) < num_known).expand(len(requests), -1),
            seeds=tuple(request.seed for request in requests),
        )

    def _stack(self, arrays: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).to(self._device, torch.float32)

    def _encode(self, images: np.ndarray) -> Tensor:
        """Scaled mean latents [N, C, h, w] of images uint8 [N, H, W, 3]."""
        if len(images) == 0:
            return torch.zeros(0, device=self._device)
        parts = as_floats(images).to(self._device).split(DECODED_AT_ONCE)
        return torch.cat([self._base.latents_from_moments(self._base.encode_moments(part)) for part in parts])

    def _decode(self, latents: Tensor) -> np.ndarray:
        """Images uint8 [N, H, W, 3] of scaled latents [N, C, h, w]."""
        return np.concatenate([self._base.decode_pictures(part) for part in latents.split(DECODED_AT_ONCE)])


def _check_match(unet: ViewDiffUNet, parts: BaseModel, *, model_dir: Path, base: Path | str) -> None:
    """Raise UserError when the network takes other texts or latents than the base model makes, or predicts something
    else than it.
    """
    pairs = {
        "text channels": (unet.unet.config.cross_attention_dim, parts.text_encoder.config.hidden_size),
        "latent channels": (unet.unet.config.in_channels, parts.vae.config.latent_channels),
    }
    for name, (expected, given) in pairs.items():
        if expected != given:
            raise UserError(
                f"model {model_dir} takes {expected} {name}, base model {base} has {given}; "
                "name the base model that it was trained with"
            )
    predicted, base_predicts = unet.prediction_type, parts.scheduler.config.prediction_type
    if predicted not in (None, base_predicts):
        raise UserError(
            f"model {model_dir} was trained to predict {predicted}, base model {base} predicts {base_predicts}; name "
            "the base model that it was trained with"
        )


def as_floats(images: np.ndarray) -> Tensor:
    """Images uint8 [N, H, W, 3] as [N, 3, H, W] in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
