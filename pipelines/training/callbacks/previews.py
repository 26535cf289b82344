"""Preview pictures of a training: what the model makes of one object that it is given the first view of."""

from __future__ import annotations

import io
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from infra.storage.files import atomic_write
from model.base.stable_diffusion import BaseModel, load_base
from model.config import SamplingConfig
from model.diffusion.sampling import RenderedDepth, ViewRequest, generate_views, render_depth
from model.layers.views import Scene
from model.unet import ViewDiffUNet
from pipelines.generation.pictures import color_depth
from pipelines.training.loop import StepInfo
from preprocessing.batches.batches import TrainBatches

PREVIEW_SAMPLING = SamplingConfig(num_steps=8, guidance_scale=1.0)  # guidance would double the time


class DrawPreviews:
    """Every so many steps one object from its first view, into `<folder>/step-000100.png`. Only for rank 0.

    Above the truth, as the autoencoder gives it back; below what the model makes of the first view; then, of a model
    with projection layers, the depth that it renders.
    """

    def __init__(
        self, unet: ViewDiffUNet, request: ViewRequest, *, base_dir: Path, folder: Path, every_steps: int
    ) -> None:
        self._unet, self._request, self._every_steps = unet, request, every_steps
        self._base_dir, self._folder = base_dir, folder
        folder.mkdir(exist_ok=True)

    @cached_property
    def _base(self) -> BaseModel:
        return load_base(self._base_dir).coders_to(self._request.known_latents.device).frozen()

    @torch.no_grad()
    def __call__(self, info: StepInfo) -> None:
        if info.step % self._every_steps:
            return
        request = self._request.prepared_by(self._unet)  # for the depth, too
        latents = generate_views(self._unet, self._base.scheduler, request, PREVIEW_SAMPLING)
        rows = [self._decode(request.known_latents[0]), self._decode(latents[0])]
        rendered = render_depth(self._unet, request, latents)
        if rendered is not None:
            rows.append(depth_row(rendered, rows[0].shape[0], rows[0].shape[1] // latents.shape[1]))
        buffer = io.BytesIO()
        Image.fromarray(np.concatenate(rows)).save(buffer, format="PNG")
        atomic_write(self._folder / f"step-{info.step:06d}.png", buffer.getvalue())

    def _decode(self, latents: Tensor) -> np.ndarray:
        """[V, C, h, w] side by side as uint8 [H, V*W, 3]."""
        return np.concatenate(list(self._base.decode_pictures(latents)), axis=1)


def depth_row(rendered: RenderedDepth, height: int, width: int) -> np.ndarray:
    """Depth of the first sample's V views side by side, uint8 [height, V*width, 3]: near is bright, far is dark."""
    colors = color_depth(rendered.depth[0].float().cpu().numpy())
    return np.concatenate([cv2.resize(view, (width, height)) for view in colors], axis=1)


def preview_request(batches: TrainBatches, num_views: int, encoder: BaseModel | None) -> ViewRequest:
    """The first held-out object (of training where none is held out) from evenly spaced views, the first one known.
    `encoder` as `TrainBatches.views`.
    """
    index, latents = batches.index, batches.latents
    sequence = (index.sequences("val") or index.sequences("test") or index.sequences("train"))[0]
    rows = [sequence.rows[number * len(sequence.rows) // num_views] for number in range(num_views)]
    return ViewRequest(
        scene=Scene.neutral(index.cameras(rows)[None], torch.from_numpy(sequence.scene_bounds)[None]),
        text=latents.text([latents.caption_number(sequence.captions[0])]).float(),
        empty_text=latents.text([0])[0].float(),
        known_latents=batches.mean_latents(rows, encoder)[None],
        known=torch.arange(num_views)[None] == 0,
        seeds=(0,),
    )
