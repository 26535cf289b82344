"""Camera and exposure of a view as a vector z, and the low-rank projections that see it.

Shape letters: B samples, V views, N = B*V, L tokens, C channels, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.cameras import Cameras

CONDITIONING_CHANNELS = 10
TIMESTEP_CODE_CHANNELS = 8
# Mean and variance of RGB that every generated view is given, which removes exposure differences between the views.
NEUTRAL_INTENSITY = (0.5, 0.0)


def camera_conditioning(cameras: Cameras) -> Tensor:
    """Pose and intrinsics of each camera as [..., 8] (the paper's z1 and z2).

    z1 = [θ, sin φ, cos φ, r] of the camera's centre c in the normalised world: polar angle θ = atan2(√(cx² + cy²), cz)
    in radians, azimuth φ = atan2(cy, cx), distance r in world units. z2 = [fx/W, fy/H, cx/W, cy/H].
    """
    center = cameras.centers()
    x, y, z = center.unbind(-1)
    polar = torch.atan2(torch.hypot(x, y), z)
    azimuth = torch.atan2(y, x)
    K = cameras.intrinsics
    height, width = cameras.image_size
    return torch.stack(
        [
            polar,
            azimuth.sin(),
            azimuth.cos(),
            center.norm(dim=-1),
            K[..., 0, 0] / width,
            K[..., 1, 1] / height,
            K[..., 0, 2] / width,
            K[..., 1, 2] / height,
        ],
        dim=-1,
    )


def conditioning_vector(cameras: Cameras, intensity: Tensor) -> Tensor:
    """The vector z [..., 10] of each view, in the cameras' dtype (the paper's z = [z1; z2; z3]).

    `intensity` [..., 2] is z3: one mean and one variance over all pixels and channels of a view's RGB values in
    [0, 1]. Training gives each view its own, generation `NEUTRAL_INTENSITY`. Raises ValueError if it does not fit.
    """
    if intensity.shape != (*cameras.shape, 2):
        raise ValueError(
            f"intensity: shape {tuple(intensity.shape)} does not fit cameras of batch shape {tuple(cameras.shape)}; "
            f"must be {(*cameras.shape, 2)}"
        )
    camera = camera_conditioning(cameras)
    return torch.cat([camera, intensity.to(camera)], dim=-1)


class LowRank(nn.Module):
    """The low-rank terms W' [x; z; e] = up(down [x; z; e]) of projections that read the same tokens x, without biases
    (the paper, section 3.1).

    down [x; z; e] is kept as down x + shift, with `shift` = down_view [z; e] from outside: one vector per view, so
    nothing need be concatenated to, or repeated over, the tokens. One product serves all projections: the rows of
    `down` hold their ranks one after another. Every `up` starts at zero, so that training starts from the pretrained
    network.
    """

    def __init__(self, in_channels: int, *, out_channels: Sequence[int], rank: int) -> None:
        super().__init__()
        self.down = low_rank_down(in_channels, rank=rank, num_projections=len(out_channels))
        self.up = nn.ModuleList(nn.Linear(rank, channels, bias=False) for channels in out_channels)
        for up in self.up:
            nn.init.zeros_(up.weight)

    def forward(self, projected: Sequence[Tensor], tokens: Tensor, shift: Tensor | None = None) -> list[Tensor]:
        """Add the terms to what the pretrained projections made of the same tokens, [N, L, out_channels] each.

        tokens [N, L, in_channels]; shift [N, num_projections * rank].
        """
        low = self.down(tokens)
        if shift is not None:
            low = low + shift[:, None]
        parts = low.chunk(len(self.up), dim=-1)
        return [_add_product(p, part, up.weight) for p, part, up in zip(projected, parts, self.up, strict=True)]


def low_rank_down(in_channels: int, *, rank: int, num_projections: int) -> nn.Linear:
    """The first matrices of that many low-rank terms, one below the other; the usual start of a low-rank adapter."""
    down = nn.Linear(in_channels, rank * num_projections, bias=False)
    nn.init.normal_(down.weight, std=1 / rank)
    return down


def _add_product(base: Tensor, low: Tensor, weight: Tensor) -> Tensor:
    """base [N, L, O] + low [N, L, r] weightᵀ in one operator, which reads and writes the large tensor once."""
    return torch.addmm(base.flatten(0, 1), low.flatten(0, 1), weight.t()).view_as(base)
