"""FLOPs counted while a network really computes, to compare model/flops.py with.

PyTorch's own counter sees every matrix product and convolution, but does not look into the volume operators: it is
told to here.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from model.cost.products import Workload
from model.unet import ViewDiffUNet
from model.volume.kernels import aggregation, marching

# Forward passes are counted where the counter meets the operator. Backward passes contain `torch.func.vjp`, which does
# not work there, so these are called as plain functions, whose products the counter sees.
_FORWARD = {
    torch.ops.viewdiff.unproject_aggregate: aggregation.unproject_aggregate,
    torch.ops.viewdiff.march: marching.march,
}


def _register() -> None:
    """Teach PyTorch's counter the volume operators."""
    for name, operator in _FORWARD.items():

        def count(*args: Any, out_val: Any, operator: Any = operator, **_: Any) -> int:
            with FlopCounterMode(display=False) as counter:
                operator._init_fn(*args)
            return counter.get_total_flops()

        register_flop_formula(name, get_raw=True)(count)


_register()


def count_passes(network: ViewDiffUNet, inputs: dict[str, Any]) -> tuple[int, int]:
    """FLOPs of a forward pass, and of a backward pass with all that it computes again."""
    with sdpa_kernel(SDPBackend.MATH):  # the counter knows no other attention of CPUs
        with FlopCounterMode(display=False) as forward:
            loss = network(**inputs).float().square().mean()
        with (
            patch.object(aggregation, "_backward", aggregation._backward._init_fn),
            patch.object(marching, "_backward", marching._backward._init_fn),
            FlopCounterMode(display=False) as backward,
        ):
            loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def workload_of(network: ViewDiffUNet, inputs: dict[str, Any]) -> Workload:
    """What these inputs are to the FLOP model: the share of seen pairs is that of the first projection layer."""
    num_samples, num_views, _, height, width = inputs["latents"].shape
    hidden = inputs.get("hidden_views", 0)
    prepared = network.prepare(inputs["scene"], (height, width)).prepared
    assert prepared is not None
    seen = total = 0.0
    for shape in network._layer_shapes((height, width)):
        depth = prepared.layers[shape].voxels.depth[:, : num_views - hidden]
        seen, total = seen + float((depth > 0).sum()), total + depth.numel()
    share = {"seen_share": seen / total} if total else {}
    return Workload(
        num_samples=num_samples,
        num_views=num_views,
        latent_size=(height, width),
        text_length=inputs["text"].shape[1],
        hidden_views=hidden,
        **share,
    )
