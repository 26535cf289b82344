"""What is counted as floating-point operations: matrix products, convolutions, attention.

A layer's product takes 2 · its weights · the positions at which they are applied, so what is to be known of each is
the number of positions. In the backward pass comes one product more for the gradient of the weights, if they are
trained, and one for that of the input, if anything before it is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

# Of the (voxel, view) pairs of a volume with a background, those in which the view sees the voxel: measured for cameras
# around the scene that look at it. Without a background it is about 0.9.
SEEN_SHARE = 0.43

STOCK, TEXT_ATTENTION, CROSS_FRAME = "U-Net", "text attention", "cross-frame attention"
CONDITIONING = "low-rank conditioning"
COMPRESS, FILL, REFINE, RENDER, EXPAND = "compress", "fill volumes", "refine volumes", "render views", "expand"
PARTS = (STOCK, TEXT_ATTENTION, CROSS_FRAME, CONDITIONING, COMPRESS, FILL, REFINE, RENDER, EXPAND)
# The volumes are computed in float32 whatever the network computes in.
FLOAT32_PARTS = (FILL, REFINE, RENDER)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What one call of the network works on."""

    num_samples: int
    num_views: int
    latent_size: tuple[int, int]
    """Height and width of the latents, pixels."""
    text_length: int
    """Tokens of a caption."""
    hidden_views: int = 0
    """Last views that are left out of the volumes."""
    seen_share: float = SEEN_SHARE
    """Of all (voxel, view) pairs, those that are computed because the view sees the voxel; in [0, 1]."""

    @property
    def num_images(self) -> int:
        """Views of all samples."""
        return self.num_samples * self.num_views

    def num_pixels(self, level: int) -> int:
        """Of a view's features after the latents were halved `level` times."""
        height, width = self.latent_size
        return (height >> level) * (width >> level)


class Product(NamedTuple):
    """A product of the forward pass."""

    part: str  # one of PARTS
    flops: float
    gradients: int  # products of the same size in the backward pass: 0 to 2
    checkpointed: bool  # computed again in the backward pass under gradient checkpointing
    recomputed: int  # how often the backward pass computes it again in any case


class Tracker:
    """Turns layers into products, in the order in which the network computes them.

    `moving` says whether what has been computed up to here depends on trained weights, `embedding_moves` whether the
    timestep embedding does.
    """

    def __init__(self, workload: Workload, *, embedding_moves: bool) -> None:
        self.workload = workload
        self.embedding_moves = embedding_moves
        self.moving = False

    def layer(
        self,
        layer: nn.Module,
        positions: float,
        *,
        part: str = STOCK,
        moving: bool | None = None,
        checkpointed: bool = True,
        recomputed: int = 0,
    ) -> Product:
        """A linear or convolutional layer. Its input is what came before, else `moving` says whether that is moving."""
        trained = layer.weight.requires_grad
        gradients = trained + (self.moving if moving is None else moving)
        if moving is None:
            self.moving = self.moving or trained
        return Product(part, 2.0 * layer.weight.numel() * positions, gradients, checkpointed, recomputed)
