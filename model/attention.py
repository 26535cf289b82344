"""Attention layers that know about views: processors for diffusers' `Attention`.

Every self-attention layer becomes cross-frame attention, every text attention layer gains the conditioning (the paper,
section 3.1 and equation 1): each projection P of Q, K, V is W x + W' [x; z; e], the output projection W a + W' a.

A processor defines `__call__`, not `forward`: diffusers reads the signature of `__call__` to learn which keyword
arguments it may pass, and would silently drop `views` otherwise.

Shape letters: B samples, V views, N = B*V, L tokens of a view, M text tokens, C channels, D channels of the timestep
embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from model.conditioning import CONDITIONING_CHANNELS, TIMESTEP_CODE_CHANNELS, ConditionedLowRank
from model.views import ViewContext


class LowRankProjections(nn.Module):
    """The low-rank terms of an attention layer's four projections; sizes come from the layer."""

    def __init__(self, attention: Attention, *, rank: int, timestep_channels: int) -> None:
        super().__init__()

        def low_rank(linear: nn.Linear) -> ConditionedLowRank:
            return ConditionedLowRank(
                linear.in_features,
                out_channels=linear.out_features,
                rank=rank,
                view_channels=CONDITIONING_CHANNELS,
                timestep_channels=timestep_channels,
            )

        self.to_q = low_rank(attention.to_q)
        self.to_k = low_rank(attention.to_k)
        self.to_v = low_rank(attention.to_v)
        output = attention.to_out[0]
        self.to_out = ConditionedLowRank(output.in_features, out_channels=output.out_features, rank=rank)


class CrossFrameAttention(nn.Module):
    """Self-attention over the tokens of several views of one sample.

    With `include_self` the queries of a view attend to the keys and values of all views, its own among them; without
    (the paper's equation 1) to those of the other views only. With one view, or `cross_frame=False`, it is plain
    self-attention. All forms are exact.
    """

    def __init__(
        self, attention: Attention, *, rank: int, timestep_channels: int, include_self: bool, cross_frame: bool
    ) -> None:
        super().__init__()
        self.include_self = include_self
        self.cross_frame = cross_frame
        self.timestep_code = nn.Sequential(
            nn.Linear(timestep_channels, timestep_channels // 2),
            nn.ELU(),
            nn.Linear(timestep_channels // 2, TIMESTEP_CODE_CHANNELS),
            nn.ELU(),
        )
        self.low_rank = LowRankProjections(attention, rank=rank, timestep_channels=TIMESTEP_CODE_CHANNELS)

    def __call__(
        self,
        attention: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        views: ViewContext,
    ) -> Tensor:
        """Tokens [N, L, C] -> [N, L, C]. `encoder_hidden_states` and `attention_mask` must be None."""
        if encoder_hidden_states is not None or attention_mask is not None:
            raise ValueError("cross-frame attention: takes neither encoder_hidden_states nor an attention_mask")
        z, e = views.conditioning, self.timestep_code(views.timestep_embedding)
        query = attention.to_q(hidden_states) + self.low_rank.to_q(hidden_states, z, e)
        key = attention.to_k(hidden_states) + self.low_rank.to_k(hidden_states, z, e)
        value = attention.to_v(hidden_states) + self.low_rank.to_v(hidden_states, z, e)
        num_views = views.num_views if self.cross_frame else 1
        if num_views == 1:
            attended = attend(query, key, value, num_heads=attention.heads)
        elif self.include_self:
            query, key, value = (merge_views(tokens, num_views) for tokens in (query, key, value))
            attended = attend(query, key, value, num_heads=attention.heads).reshape(
                hidden_states.shape[0], -1, query.shape[-1]
            )
        else:
            key, value = (tokens_of_other_views(tokens, num_views) for tokens in (key, value))
            attended = attend(query, key, value, num_heads=attention.heads)
        return project_out(attention, self.low_rank, attended)


class ConditionedTextAttention(nn.Module):
    """Attention of a view's tokens to the caption's, whose low-rank terms see [token; z of the view]."""

    def __init__(self, attention: Attention, *, rank: int) -> None:
        super().__init__()
        self.low_rank = LowRankProjections(attention, rank=rank, timestep_channels=0)

    def __call__(
        self,
        attention: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        views: ViewContext,
    ) -> Tensor:
        """Tokens [N, L, C] and caption tokens [N, M, C_text] -> [N, L, C]. `attention_mask` must be None."""
        if encoder_hidden_states is None or attention_mask is not None:
            raise ValueError("text attention: needs encoder_hidden_states and takes no attention_mask")
        z = views.conditioning
        query = attention.to_q(hidden_states) + self.low_rank.to_q(hidden_states, z)
        key = attention.to_k(encoder_hidden_states) + self.low_rank.to_k(encoder_hidden_states, z)
        value = attention.to_v(encoder_hidden_states) + self.low_rank.to_v(encoder_hidden_states, z)
        return project_out(attention, self.low_rank, attend(query, key, value, num_heads=attention.heads))


def merge_views(tokens: Tensor, num_views: int) -> Tensor:
    """[B*V, L, C] -> [B, V*L, C] without a copy: a sample's views lie next to each other."""
    return tokens.reshape(-1, num_views * tokens.shape[1], tokens.shape[2])


def tokens_of_other_views(tokens: Tensor, num_views: int) -> Tensor:
    """[B*V, L, C] -> [B*V, (V-1)*L, C]: for each view the tokens of the sample's other views.

    Leaving a view's own tokens out by a mask would cost a [V*L, V*L] mask and rule out the fastest attention kernels.
    """
    rank = torch.arange(num_views - 1, device=tokens.device)
    view = torch.arange(num_views, device=tokens.device)[:, None]
    others = rank + (rank >= view)  # [V, V-1]: row i lists 0..V-1 without i
    return tokens.unflatten(0, (-1, num_views))[:, others].flatten(2, 3).flatten(0, 1)


def attend(query: Tensor, key: Tensor, value: Tensor, *, num_heads: int) -> Tensor:
    """Multi-head scaled dot-product attention: [N, L, C], [N, M, C], [N, M, C] -> [N, L, C]."""
    heads = (tokens.unflatten(-1, (num_heads, -1)).transpose(1, 2) for tokens in (query, key, value))
    return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


def project_out(attention: Attention, low_rank: LowRankProjections, attended: Tensor) -> Tensor:
    """The layer's output projection with its low-rank term and dropout: [N, L, C] -> [N, L, C]."""
    linear, dropout = attention.to_out
    return dropout(linear(attended) + low_rank.to_out(attended))
