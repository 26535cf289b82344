"""model/layers/attention.py against plain loops over views and heads."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from model.layers.attention import ConditionedTextAttention, CrossFrameAttention, attend_to_other_views
from model.layers.conditioning import LowRank
from model.layers.views import ViewContext
from tests.support.factories import randomize

B, V, L, C, HEADS = 2, 3, 8, 16, 2
TIMESTEP_CHANNELS = 6
TOLERANCE = 1e-5  # float32 sums of at most a hundred terms of order one, in another order


def _views(num_views: int = V) -> ViewContext:
    return ViewContext(
        num_views=num_views,
        latent_size=(4, 2),
        conditioning=torch.randn(B * num_views, 10),
        timestep_embedding=torch.randn(B * num_views, TIMESTEP_CHANNELS),
        geometry={},
        hidden_views=0,
        opacity_noise=None,
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


def _low_rank(terms: LowRank, number: int, tokens: Tensor, down_view: Tensor, view: Tensor) -> Tensor:
    """W' [x; z; e] of one view's tokens x [L, C] and its [z; e], for one of the projections that read them."""
    up = terms.up[number].weight
    rows = slice(number * up.shape[1], (number + 1) * up.shape[1])
    down = torch.cat([terms.down.weight[rows], down_view[rows]], dim=1)
    return torch.cat([tokens, view.expand(len(tokens), -1)], dim=1) @ down.T @ up.T


def _low_rank_out(terms: LowRank, attended: Tensor) -> Tensor:
    """W' a, which sees nothing of the view."""
    return attended @ terms.down.weight.T @ terms.up[0].weight.T


def _attended(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Queries [L, C] of a view to keys and values [M, C], one head at a time."""
    heads = []
    for channels in torch.arange(C).chunk(HEADS):
        scores = query[:, channels] @ keys[:, channels].T / (C // HEADS) ** 0.5
        heads.append(scores.softmax(dim=-1) @ values[:, channels])
    return torch.cat(heads, dim=-1)


def _views_to_attend_to(n: int, num_views: int, *, include_self: bool) -> list[int]:
    """Of view n, counted over all samples: those of its sample."""
    first = n // num_views * num_views
    return [j for j in range(first, first + num_views) if include_self or j != n]


def _by_loops(layer: Attention, processor: CrossFrameAttention, tokens: Tensor, views: ViewContext) -> Tensor:
    """Equation 1 of the paper written out: one view and one head at a time."""
    z_and_e = torch.cat([views.conditioning, processor.timestep_code(views.timestep_embedding)], dim=-1)
    q, k, v = (
        torch.stack(
            [
                projection(tokens[n])
                + _low_rank(processor.low_rank_qkv, number, tokens[n], processor.down_view.weight, z_and_e[n])
                for n in range(len(tokens))
            ]
        )
        for number, projection in enumerate((layer.to_q, layer.to_k, layer.to_v))
    )
    output = []
    for n in range(len(tokens)):
        attended_to = _views_to_attend_to(n, views.num_views, include_self=processor.include_self)
        attended = _attended(q[n], torch.cat([k[j] for j in attended_to]), torch.cat([v[j] for j in attended_to]))
        output.append(layer.to_out[0](attended) + _low_rank_out(processor.low_rank_out, attended))
    return torch.stack(output)


def _text_by_loops(
    layer: Attention, processor: ConditionedTextAttention, tokens: Tensor, text: Tensor, z: Tensor
) -> Tensor:
    """One view and one head at a time; `down_view` holds the rows of q, k and v one below the other."""
    of_q, of_kv = processor.down_view.weight.split([2, 2 * 2])  # rank 2
    output = []
    for x, caption, of_view in zip(tokens, text, z, strict=True):
        query = layer.to_q(x) + _low_rank(processor.low_rank_q, 0, x, of_q, of_view)
        keys = layer.to_k(caption) + _low_rank(processor.low_rank_kv, 0, caption, of_kv, of_view)
        values = layer.to_v(caption) + _low_rank(processor.low_rank_kv, 1, caption, of_kv, of_view)
        attended = _attended(query, keys, values)
        output.append(layer.to_out[0](attended) + _low_rank_out(processor.low_rank_out, attended))
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
    with torch.no_grad():
        for up in (*processor.low_rank_qkv.up, *processor.low_rank_out.up):
            up.weight.zero_()
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


def _attend_to_others_by_loops(query: Tensor, key: Tensor, value: Tensor, num_views: int) -> Tensor:
    output = []
    for n in range(len(query)):
        others = _views_to_attend_to(n, num_views, include_self=False)
        output.append(_attended(query[n], torch.cat([key[j] for j in others]), torch.cat([value[j] for j in others])))
    return torch.stack(output)


@pytest.mark.parametrize("num_views", [2, 3])
def test_attention_to_other_views_and_its_gradients_equal_loops(num_views: int) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(B * num_views, L, C, dtype=torch.float64, requires_grad=True) for _ in "qkv"]
    ours = attend_to_other_views(*inputs, num_views=num_views, num_heads=HEADS)
    theirs = _attend_to_others_by_loops(*inputs, num_views)
    torch.testing.assert_close(ours, theirs)
    direction = torch.randn_like(ours)
    gradients = torch.autograd.grad((ours * direction).sum(), inputs)
    for gradient, expected in zip(gradients, torch.autograd.grad((theirs * direction).sum(), inputs), strict=True):
        assert expected.abs().max() > 0.01  # nothing is compared with nothing
        torch.testing.assert_close(gradient, expected)


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


def test_text_attention_equals_loops() -> None:
    torch.manual_seed(0)
    layer = Attention(C, cross_attention_dim=5, heads=HEADS, dim_head=C // HEADS)
    processor = ConditionedTextAttention(layer, rank=2)
    layer.set_processor(processor)
    randomize(layer, seed=1)
    tokens, text, views = torch.randn(B * V, L, C), torch.randn(B * V, 4, 5), _views()
    expected = _text_by_loops(layer, processor, tokens, text, views.conditioning)
    ours = layer(tokens, encoder_hidden_states=text, views=views)
    torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=0)


def test_masks_are_refused() -> None:
    layer, _ = _layer(include_self=True)
    with pytest.raises(ValueError, match="attention_mask"):
        layer(torch.randn(B * V, L, C), attention_mask=torch.zeros(1), views=_views())
