"""Host."""
from __future__ import annotations

import torch
from torch import Tensor

from model.kernels.aggregation import AggregationWeights
from model.kernels.triton_aggregation_backward import backward_kernel
from model.kernels.triton_aggregation_forward import forward_kernel
from model.kernels.triton_aggregation_network import Views

BLOCK = 64
WARPS = 4
GROUPS = 4


def _views(features, codes, pixels, depth, reachable, ray_matrices):
    B, V, h, w, C = features.shape
    return Views(features, codes.contiguous(), pixels, depth, reachable, ray_matrices.contiguous(), pixels.stride(0), pixels.stride(1), depth.stride(0), depth.stride(1), B, V, depth.shape[2], h, w)


def forward(features, view_codes, pixels, depth, reachable, ray_matrices, weights):
    v = _views(features, view_codes, pixels, depth, reachable, ray_matrices)
    programs = 3
    C = features.shape[-1]
    scratch = features.new_empty(programs, v.num_views, BLOCK, C)
    volume = features.new_empty(v.num_samples, C, v.num_voxels)
    forward_kernel[(programs,)](v, AggregationWeights(*weights), scratch, volume, CHANNELS=C, BLOCK=BLOCK, num_warps=WARPS)
    return volume


def backward(gradient, features, view_codes, pixels, depth, reachable, ray_matrices, weights):
    v = _views(features, view_codes, pixels, depth, reachable, ray_matrices)
    programs = 3
    C = features.shape[-1]
    scratch = features.new_empty(programs, 2, v.num_views, BLOCK, C)
    of_features = torch.zeros_like(features)
    of_codes = features.new_zeros(programs * GROUPS, v.num_samples, v.num_views, C)
    sizes = [-(-w.numel() // 4) * 4 for w in weights]
    total = sum(sizes)
    partial = features.new_zeros(programs * GROUPS, total)
    g = AggregationWeights(*partial[0].split(sizes))
    backward_kernel[(programs,)](gradient, v, AggregationWeights(*weights), g, total, scratch, of_features, of_codes, CHANNELS=C, BLOCK=BLOCK, GROUPS=GROUPS, num_warps=WARPS)
    sums = torch.split_with_sizes_copy(partial.sum(0), sizes)
    return [of_features, of_codes.sum(0), *(s[:w.numel()].view_as(w) for s, w in zip(sums, weights))]
