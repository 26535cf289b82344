from __future__ import annotations

import triton
import triton.language as tl

from model.kernels.triton_aggregation_network import merge_encoded, merge_shown, nothing, output, statistics


@triton.jit
def forward_kernel(views, w, scratch, volume, C: tl.constexpr, BLOCK: tl.constexpr):
    blocks = tl.cdiv(views.num_voxels, BLOCK)
    channel = tl.arange(0, C)[None, :]
    shown = scratch + tl.program_id(0) * views.num_views * BLOCK * C + tl.arange(0, BLOCK)[:, None] * C + channel
    for number in range(tl.program_id(0), blocks * views.num_samples, tl.num_programs(0)):
        b = (number // blocks).to(tl.int64)
        voxel = (number % blocks) * BLOCK + tl.arange(0, BLOCK)
        m = merge_shown(views, w, shown, b, voxel, C)
        tl.debug_barrier()
        merged = nothing(BLOCK, C)
        if tl.max(m.weight, 0) > 0:
            share = 1 / tl.maximum(m.weight, 1.0)[:, None]
            st = statistics(m, w, C)
            merged = merge_encoded(views, w, shown, st, share, b, voxel, C)
        tl.debug_barrier()
        out = output(merged, w, views.num_views, C)
        tl.store(volume + b * C * views.num_voxels + channel * views.num_voxels + voxel[:, None], out, mask=(voxel < views.num_voxels)[:, None])
