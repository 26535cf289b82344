"""model/attention.py against plain loops over views and heads."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from model.attention import ConditionedTextAttention, CrossFrameAttention, tokens_of_other_views
from model.conditioning import ConditionedLowRank
from model.views import ViewContext
from tests.factories import look_at_cameras, randomize

B, V, L, C, HEADS = 2, 3, 8, 16, 2
TIMESTEP_CHANNELS = 6
TOLERANCE = 1e-5  # float32 sums of at most a hundred terms of order one, in another order


def _views(num_views: int = V) -> ViewContext:
    return ViewContext(
        num_views=num_views,
        latent_size=(4, 2),
        conditioning=torch.randn(B * num_views, 10),
        timestep_embedding=torch.randn(B * num_views, TIMESTEP_CHANNELS),
        cameras=look_at_cameras(B, num_views),
        scene_bounds=torch.zeros(B, 2, 3),
        hidden_views=0,
        opacity_noise_seeds=None,
    )


def _layer(*, include_self: bool, cross_frame: bool = True) -> tuple[Attention, CrossFrameAttention]:
    torch.manual_seed(0)
    layer = Attention(C, heads=HEADS, dim_head=C // HEADS)
    processor = CrossFrameAttention(
        layer, rank=2, timestep_channels=TIMESTEP_CHANNELS, include_self=include_self, cross_frame=cross_frame
    )
    layer.set_processor(processor)
    randomize(layer, seed=1)
    return layer, processor


def _low_rank(term: ConditionedLowRank, tokens: Tensor, z: Tensor, e: Tensor) -> Tensor:
    low = term.down_x(tokens)
    for part, value in ((term.down_z, z), (term.down_e, e)):
        assert part is not None
        low = low + part(value)
    return term.up(low)


def _by_loops(layer: Attention, processor: CrossFrameAttention, tokens: Tensor, views: ViewContext) -> Tensor:
    """Equation 1 of the paper written out: one view and one head at a time."""
    e = processor.timestep_code(views.timestep_embedding)
    terms = processor.low_rank
    q, k, v = (
        torch.stack(
            [
                projection(tokens[n]) + _low_rank(term, tokens[n], views.conditioning[n], e[n])
                for n in range(len(tokens))
            ]
        )
        for projection, term in ((layer.to_q, terms.to_q), (layer.to_k, terms.to_k), (layer.to_v, terms.to_v))
    )
    output = []
    for n in range(len(tokens)):
        sample = n // views.num_views
        attended_to = [
            j
            for j in range(sample * views.num_views, (sample + 1) * views.num_views)
            if processor.include_self or j != n
        ]
        keys, values = torch.cat([k[j] for j in attended_to]), torch.cat([v[j] for j in attended_to])
        heads = []
        for head in range(HEADS):
            channels = slice(head * C // HEADS, (head + 1) * C // HEADS)
            scores = q[n][:, channels] @ keys[:, channels].T / (C // HEADS) ** 0.5
            heads.append(scores.softmax(dim=-1) @ values[:, channels])
        attended = torch.cat(heads, dim=-1)
        output.append(layer.to_out[0](attended) + terms.to_out.up(terms.to_out.down_x(attended)))
    return torch.stack(output)


@pytest.mark.parametrize("include_self", [True, False])
def test_cross_frame_attention_equals_loops(include_self: bool) -> None:
    layer, processor = _layer(include_self=include_self)
    tokens, views = torch.randn(B * V, L, C), _views()
    torch.testing.assert_close(
        layer(tokens, views=views), _by_loops(layer, processor, tokens, views), atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("include_self", [True, False])
def test_one_view_is_plain_self_attention(include_self: bool) -> None:
    layer, processor = _layer(include_self=include_self)
    processor.low_rank.requires_grad_(False)
    for term in processor.low_rank.children():
        assert isinstance(term, ConditionedLowRank)
        term.up.weight.zero_()
    stock = Attention(C, heads=HEADS, dim_head=C // HEADS)
    stock.load_state_dict({k: v for k, v in layer.state_dict().items() if not k.startswith("processor.")})
    tokens = torch.randn(B, L, C)
    assert torch.equal(layer(tokens, views=_views(1)), stock(tokens))


def test_without_cross_frame_views_do_not_see_each_other() -> None:
    layer, _ = _layer(include_self=True, cross_frame=False)
    tokens, views = torch.randn(B * V, L, C), _views()
    changed = tokens.clone()
    changed[1] += 1
    difference = (layer(changed, views=views) - layer(tokens, views=views)).abs().amax(dim=(1, 2))
    assert difference[1] > 0
    assert difference[[0, 2, 3, 4, 5]].max() == 0


def test_samples_do_not_see_each_other() -> None:
    layer, _ = _layer(include_self=True)
    tokens, views = torch.randn(B * V, L, C), _views()
    changed = tokens.clone()
    changed[0] += 1
    difference = (layer(changed, views=views) - layer(tokens, views=views)).abs().amax(dim=(1, 2))
    assert difference[:V].min() > 0
    assert difference[V:].max() == 0


def test_tokens_of_other_views_leave_out_ones_own() -> None:
    view_numbers = torch.arange(B * V, dtype=torch.float32)[:, None, None].expand(-1, 2, 1)
    others = tokens_of_other_views(view_numbers, V)[..., 0].tolist()
    assert others == [[1, 1, 2, 2], [0, 0, 2, 2], [0, 0, 1, 1], [4, 4, 5, 5], [3, 3, 5, 5], [3, 3, 4, 4]]


def test_text_attention_sees_each_views_conditioning() -> None:
    torch.manual_seed(0)
    layer = Attention(C, cross_attention_dim=5, heads=HEADS, dim_head=C // HEADS)
    layer.set_processor(ConditionedTextAttention(layer, rank=2))
    tokens, text, views = torch.randn(B * V, L, C), torch.randn(B * V, 4, 5), _views()
    stock = Attention(C, cross_attention_dim=5, heads=HEADS, dim_head=C // HEADS)
    stock.load_state_dict({k: v for k, v in layer.state_dict().items() if not k.startswith("processor.")})
    assert torch.equal(layer(tokens, encoder_hidden_states=text, views=views), stock(tokens, text))

    randomize(layer, seed=1)
    z = views.conditioning.clone()
    z[2] += 1
    other = dataclasses.replace(views, conditioning=z)
    difference = layer(tokens, encoder_hidden_states=text, views=other) - layer(
        tokens, encoder_hidden_states=text, views=views
    )
    assert (difference.abs().amax(dim=(1, 2)) > 0).tolist() == [False, False, True, False, False, False]


def test_masks_are_refused() -> None:
    layer, _ = _layer(include_self=True)
    with pytest.raises(ValueError, match="attention_mask"):
        layer(torch.randn(B * V, L, C), attention_mask=torch.zeros(1), views=_views())
