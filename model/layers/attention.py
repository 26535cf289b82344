"""Attention layers that know about views: processors for diffusers' `Attention`.

Every self-attention layer becomes cross-frame attention, every text attention layer gains the conditioning (the paper,
section 3.1 and equation 1): each projection P of Q, K, V is W x + W' [x; z; e], the output projection W a + W' a.

A processor defines `__call__`, not `forward`: diffusers reads the signature of `__call__` to learn which keyword
arguments it may pass, and would silently drop `views` otherwise.

Shape letters: B samples, V views, N = B*V, L tokens of a view, M text tokens, C channels, D channels of the timestep
embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from model.layers.conditioning import CONDITIONING_CHANNELS, TIMESTEP_CODE_CHANNELS, LowRank, low_rank_down
from model.layers.views import ViewContext


class LowRankTerm(NamedTuple):
    """The low-rank term of one projection: views of the parameters, so that writing to them changes the layer."""

    projection: str  # the name of its linear layer in diffusers' Attention
    down: Tensor  # [rank, in_channels]
    down_view: Tensor | None  # [rank, view_channels]
    up: Tensor  # [out_channels, rank]


class ViewAttention(nn.Module):
    """What both kinds of processors have in common: where their low-rank terms are."""

    def low_rank_terms(self) -> list[LowRankTerm]:
        """The terms of the layer's four projections."""
        of_views = list(self.down_view.weight.chunk(3))  # of query, key and value
        terms = []
        for low_rank, projections in self.low_ranks():
            downs = low_rank.down.weight.chunk(len(projections))
            for projection, down, up in zip(projections, downs, low_rank.up, strict=True):
                down_view = None if projection == "to_out.0" else of_views.pop(0)
                terms.append(LowRankTerm(projection, down, down_view, up.weight))
        return terms


class CrossFrameAttention(ViewAttention):
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
        self.down_view = low_rank_down(CONDITIONING_CHANNELS + TIMESTEP_CODE_CHANNELS, rank=rank, num_projections=3)
        self.low_rank_qkv = _low_rank((attention.to_q, attention.to_k, attention.to_v), rank)
        self.low_rank_out = _low_rank((attention.to_out[0],), rank)

    def low_ranks(self) -> list[tuple[LowRank, tuple[str, ...]]]:
        """Each with the projections that it serves."""
        return [(self.low_rank_qkv, ("to_q", "to_k", "to_v")), (self.low_rank_out, ("to_out.0",))]

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
        view = torch.cat([views.conditioning, self.timestep_code(views.timestep_embedding)], dim=-1)  # [z; e]
        projected = [linear(hidden_states) for linear in (attention.to_q, attention.to_k, attention.to_v)]
        query, key, value = self.low_rank_qkv(projected, hidden_states, self.down_view(view))
        num_views = views.num_views if self.cross_frame else 1
        if num_views == 1 or self.include_self:
            query, key, value = (merge_views(tokens, num_views) for tokens in (query, key, value))
            attended = attend(query, key, value, num_heads=attention.heads).view_as(hidden_states)
        else:
            attended = attend_to_other_views(query, key, value, num_views=num_views, num_heads=attention.heads)
        return project_out(attention, self.low_rank_out, attended)


class ConditionedTextAttention(ViewAttention):
    """Attention of a view's tokens to the caption's, whose low-rank terms see [token; z of the view]."""

    def __init__(self, attention: Attention, *, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.down_view = low_rank_down(CONDITIONING_CHANNELS, rank=rank, num_projections=3)
        self.low_rank_q = _low_rank((attention.to_q,), rank)
        self.low_rank_kv = _low_rank((attention.to_k, attention.to_v), rank)
        self.low_rank_out = _low_rank((attention.to_out[0],), rank)

    def low_ranks(self) -> list[tuple[LowRank, tuple[str, ...]]]:
        """Each with the projections that it serves."""
        kv = (self.low_rank_kv, ("to_k", "to_v"))
        return [(self.low_rank_q, ("to_q",)), kv, (self.low_rank_out, ("to_out.0",))]

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
        text, shift = encoder_hidden_states, self.down_view(views.conditioning)
        (query,) = self.low_rank_q([attention.to_q(hidden_states)], hidden_states, shift[:, : self.rank])
        key, value = self.low_rank_kv([attention.to_k(text), attention.to_v(text)], text, shift[:, self.rank :])
        attended = attend(query, key, value, num_heads=attention.heads)
        return project_out(attention, self.low_rank_out, attended)


def merge_views(tokens: Tensor, num_views: int) -> Tensor:
    """[B*V, L, C] -> [B, V*L, C] without a copy: a sample's views lie next to each other."""
    return tokens.reshape(-1, num_views * tokens.shape[1], tokens.shape[2])


def attend_to_other_views(query: Tensor, key: Tensor, value: Tensor, *, num_views: int, num_heads: int) -> Tensor:
    """Attention of each view to the others of its sample, [B*V, L, C] each -> [B*V, L, C]; V ≥ 2 (the paper's eq. 1).

    With the views written down twice in a row, the others of any view are one slice: the V - 1 views that follow it.
    The order of keys does not matter. So keys and values are copied once, not V - 1 times as by gathering them, and
    there is no [V*L, V*L] mask, which would rule out the fastest attention kernels.
    """
    length = query.shape[1]
    keys, values = (merge_views(tokens, num_views).repeat(1, 2, 1) for tokens in (key, value))
    attended = []
    for view, own_query in enumerate(query.unflatten(0, (-1, num_views)).unbind(1)):
        others = slice((view + 1) * length, (view + num_views) * length)
        attended.append(attend(own_query, keys[:, others], values[:, others], num_heads=num_heads))
    return torch.stack(attended, dim=1).flatten(0, 1)


def attend(query: Tensor, key: Tensor, value: Tensor, *, num_heads: int) -> Tensor:
    """Multi-head scaled dot-product attention: [N, L, C], [N, M, C], [N, M, C] -> [N, L, C]."""
    heads = (tokens.unflatten(-1, (num_heads, -1)).transpose(1, 2) for tokens in (query, key, value))
    return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


def project_out(attention: Attention, low_rank: LowRank, attended: Tensor) -> Tensor:
    """The layer's output projection with its low-rank term and dropout: [N, L, C] -> [N, L, C]."""
    linear, dropout = attention.to_out
    (output,) = low_rank([linear(attended)], attended)
    return dropout(output)


def _low_rank(linears: Sequence[nn.Linear], rank: int) -> LowRank:
    """The terms of projections that read the same tokens; sizes come from the layer."""
    return LowRank(linears[0].in_features, out_channels=[linear.out_features for linear in linears], rank=rank)
