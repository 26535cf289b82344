"""ViewContext: what one denoising call knows about its views.

It is built once in `ViewDiffUNet.forward` and reaches every layer as `cross_attention_kwargs={"views": views}`. It is
frozen and nothing is written into it, and no layer keeps it: state on modules goes wrong with gradient checkpointing
and with two forward passes before one backward pass.

Shape letters: B samples, V views, D channels of the timestep embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from model.cameras import Cameras


@dataclass(frozen=True, eq=False)
class ViewContext:
    """Facts of one denoising call. Batch dimensions that say B*V hold a sample's views next to each other."""

    num_views: int  # V
    latent_size: tuple[int, int]  # (height, width) of the U-Net's input
    conditioning: Tensor  # [B*V, 10] the vector z, see model/conditioning.py
    timestep_embedding: Tensor  # [B*V, D]
    cameras: Cameras  # batch shape [B, V]; any image size: a layer resizes them to its own features
    scene_bounds: Tensor  # [B, 2, 3] minimum and maximum corner, world units
    hidden_views: int  # that many last views are left out of the volume: 1 in training, 0 in generation
    opacity_noise_seeds: (
        tuple[int, ...] | None
    )  # one per sample, so that noise depends on no batch split; None: no noise

    def feature_size(self, num_tokens: int) -> tuple[int, int]:
        """(height, width) of the U-Net's level whose features have `num_tokens` pixels.

        Raises ValueError when the latents have no such level; every level halves height and width exactly.
        """
        height, width = self.latent_size
        while height * width > num_tokens and height % 2 == 0 and width % 2 == 0:
            height, width = height // 2, width // 2
        if height * width != num_tokens:
            raise ValueError(f"views: latents of {self.latent_size} have no level with {num_tokens} tokens")
        return height, width
