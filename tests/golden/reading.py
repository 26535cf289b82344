"""A projection layer read literally from its formulas (the paper, section 3.2), in float64 with NumPy.

Slow and plain on purpose, and without a line of `model/`: what the layer's versions compute is compared with it. Names
of inputs, weights and results are those of golden files, see tests/golden/names.py.

Shape letters: V views of which the first V' fill the volume, K channels of the volume, h × w pixels, R = h·w rays, S
positions on a ray, G voxels a side, N = G³ voxels in the order of storage (x fastest).
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from tests.golden.numpy_layers import Arrays, convolve, elu, elu_mlp, linear, normalize, relu, sigmoid, silu

BACKGROUND_REACH, MISSED = 4.0, (0.5, 4.5)  # half scene sizes


def read_layer(inputs: Arrays, weights: Arrays, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """ "mid.points" and so on, of one sample: what the layer makes of the inputs [1, V, ...]."""
    latents, poses, bounds, times = (
        inputs[key][0].astype(float) for key in ("latents", "world_to_camera", "bbox", "temb")
    )
    V, _, h, w = latents.shape
    G, p = int(config["grid_size"]), float(config["foreground_fraction"])
    seen_by = V - int(config["hidden_views"])
    center, s = bounds.mean(0), (bounds[1] - bounds[0]).max() / 2
    K = inputs["K"][0].astype(float)
    K[:, :2, 2] += 0.5  # there pixel centres lie at whole numbers
    K[:, 0] *= w / config["image_width"]
    K[:, 1] *= h / config["image_height"]

    rays = np.stack([ray_directions(pose, k, h, w) for pose, k in zip(poses, K, strict=True)])  # [V, R, 3]
    compressed = np.stack([compress(view, weights) for view in latents[:seen_by]])  # [V', K, h, w]
    normalized, reachable = voxels(G, p if config["background"] else None)
    points = center + s * normalized  # [N, 3]
    maps = np.concatenate([compressed, rays[:seen_by].transpose(0, 2, 1).reshape(seen_by, 3, h, w)], axis=1)
    views = zip(maps, poses[:seen_by], K[:seen_by], strict=True)
    shown = [unproject(*view, points, reachable) for view in views]
    samples, depth, valid = (np.stack(part) for part in zip(*shown, strict=True))  # [V', N, K + 3], [V', N] twice
    volume = aggregate(samples, depth, valid, times[:seen_by], weights)
    aggregated = volume.T.reshape(-1, G, G, G)
    refined = refine(aggregated, times[-1], weights)

    cameras = -np.einsum("vji,vj->vi", poses[:, :3, :3], poses[:, :3, 3])  # [V, 3]
    rendered = [render(refined, cameras[v], rays[v], center, s, bounds, weights, config) for v in range(V)]
    features, opacity, expected_depth, near, far = (np.stack(part) for part in zip(*rendered, strict=True))
    foreground = expand(features, weights, "proj_out_2d_fg")
    background = expand(features, weights, "proj_out_2d_bg")
    out = opacity[..., None] * foreground + (1 - opacity[..., None]) * background  # [V, R, C]
    return {
        "mid.rays": rays,
        "mid.near": near,
        "mid.far": far,
        "mid.points": points.T,
        "mid.volume": samples.transpose(0, 2, 1),
        "mid.weights": valid,
        "mid.depth": (depth * valid).reshape(1, seen_by, 1, G, G, G),
        "mid.aggregated": aggregated,
        "mid.refined": refined,
        "mid.rendered": features,
        "mid.mask": opacity,
        "mid.exp_depth": expected_depth,
        "out.features": out.transpose(0, 2, 1).reshape(1, V, -1, h, w),
        "out.mask": opacity,
        "out.depth": expected_depth,
    }


def voxels(G: int, p: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Normalised points [N, 3] of the voxels, and which of them the contraction reaches. p is None without background.

    Centres in float32, (i + 0.5)/G, times 2, minus 1: this decides which coordinates tie. Reach in whole numbers.
    """
    g = (np.arange(G, dtype=np.float32) + np.float32(0.5)) / np.float32(G) * np.float32(2) - np.float32(1)
    points, reachable = np.zeros((G, G, G, 3)), np.ones((G, G, G), bool)
    for z, y, x in np.ndindex(G, G, G):
        u = np.array([g[x], g[y], g[z]], float)
        if p is not None:
            u = u / p
            n = np.abs(u).max()
            if n > 1:
                n0 = (1 / p - 1) / (1 / p - n)
                u = np.where(np.abs(u) == n, np.sign(u) * n0, u * n0)
            reachable[z, y, x] = sum(abs(2 * i + 1 - G) > Fraction(str(p)) * G for i in (x, y, z)) < 2
        points[z, y, x] = u
    return points.reshape(-1, 3), reachable.flatten()


def ray_directions(pose: np.ndarray, K: np.ndarray, h: int, w: int) -> np.ndarray:
    """Rᵀ K⁻¹ (u, v, 1) of all pixel centres, [R, 3]."""
    v, u = np.mgrid[:h, :w] + 0.5
    pixels = np.stack([u, v, np.ones_like(u)], axis=-1).reshape(-1, 3)
    return pixels @ np.linalg.inv(K).T @ pose[:3, :3]


def compress(features: np.ndarray, weights: Arrays) -> np.ndarray:
    """[C, h, w] -> [K, h, w]: 3×3, ReLU, 3×3, ReLU, 1×1."""
    hidden = relu(convolve(features, weights, "proj_in_2d.0.conv"))
    return convolve(relu(convolve(hidden, weights, "proj_in_2d.1.conv")), weights, "proj_in_2d.2")


def unproject(
    maps: np.ndarray, pose: np.ndarray, K: np.ndarray, points: np.ndarray, reachable: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a view shows at the points: samples [N, K + 3] of its maps [K + 3, h, w], depth [N], valid [N]."""
    camera = points @ pose[:3, :3].T + pose[:3, 3]
    depth = camera[:, 2]
    pixels = camera @ K.T
    u, v = pixels[:, 0] / pixels[:, 2], pixels[:, 1] / pixels[:, 2]
    _, h, w = maps.shape
    valid = (u >= 0) & (u <= w) & (v >= 0) & (v <= h) & (depth > 0)
    use = valid & reachable
    samples = np.zeros((len(points), len(maps)))
    samples[use] = interpolate(maps, np.stack([v[use], u[use]], axis=-1) - 0.5)
    return samples, depth, valid.astype(float)


def interpolate(values: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Linear samples [P, C] of values [C, *sizes] at continuous indices [P, dimensions]; zeros beyond the values."""
    low = np.floor(indices).astype(int)
    total = np.zeros((len(indices), len(values)))
    for corner in np.ndindex(*(2,) * indices.shape[1]):
        place = low + corner
        share = (1 - np.abs(indices - place)).prod(-1)
        exists = ((place >= 0) & (place < values.shape[1:])).all(-1)
        total[exists] += share[exists, None] * values[(slice(None), *place[exists].T)].T
    return total


def aggregate(
    samples: np.ndarray, depth: np.ndarray, mask: np.ndarray, times: np.ndarray, weights: Arrays
) -> np.ndarray:
    """Samples [V', N, K + 3], depth and mask [V', N], timestep embeddings [V', D] -> volume [N, K]."""
    part = "ibrnet_aggregator."
    m, f, rays = mask[..., None], samples[..., :-3], samples[..., -3:]
    f = f + elu_mlp(np.concatenate([rays, depth[..., None]], -1), weights, f"{part}ray_depth_encoder")
    f = f + elu_mlp(times, weights, f"{part}temb_encoder")[:, None]
    share = m / (m.sum(0) + 1e-8)
    mean = (share * f).sum(0)
    variance = (share * (f - mean) ** 2).sum(0)
    a = elu_mlp(
        np.concatenate([np.broadcast_to(mean, f.shape), np.broadcast_to(variance, f.shape), f], -1),
        weights,
        f"{part}base_fc",
    )
    change = elu_mlp(a * share, weights, f"{part}vis_fc")
    q = sigmoid(change[..., -1:]) * m
    a = a + change[..., :-1]
    hidden = elu(linear(a * q, weights, f"{part}vis_fc2.0"))
    q = sigmoid(linear(hidden, weights, f"{part}vis_fc2.2")) * m
    share = q / (q.sum(0) + 1e-8)
    mean = (share * a).sum(0)
    variance = (share * (a - mean) ** 2).sum(0)
    return elu(linear(np.concatenate([mean, variance, share.mean(0)], -1), weights, f"{part}statistics_out.0"))


def refine(volume: np.ndarray, time: np.ndarray, weights: Arrays) -> np.ndarray:
    """One 3D ResNet block: [K, G, G, G], timestep embedding [D] of the last view -> [K, G, G, G]."""
    part = "blocks_3d.0."
    hidden = convolve(silu(normalize(volume, weights, f"{part}norm1")), weights, f"{part}conv1")
    hidden = hidden + linear(silu(time), weights, f"{part}time_emb_proj")[:, None, None, None]
    return volume + convolve(silu(normalize(hidden, weights, f"{part}norm2")), weights, f"{part}conv2")


def render(
    volume: np.ndarray,
    camera: np.ndarray,
    rays: np.ndarray,
    center: np.ndarray,
    s: float,
    bounds: np.ndarray,
    weights: Arrays,
    config: Mapping[str, Any],
) -> tuple[np.ndarray, ...]:
    """March along a view's rays [R, 3] from its camera [3]: features [R, K], opacity, depth, near and far [R]."""
    origin, direction = (camera - center) / s, rays / s
    depths, intervals, near, far = positions(origin, direction, (bounds - center) / s, s, config)
    points = origin + depths[..., None] * direction[:, None]  # [R, S, 3]
    if config["background"]:
        points = contract(points, float(config["foreground_fraction"]))
    G = volume.shape[-1]
    indices = (points.reshape(-1, 3)[:, ::-1] + 1) / 2 * G - 0.5  # z, y, x; 0 at the first voxel's centre
    inside = ((indices >= 0) & (indices < G)).all(-1)
    f = (interpolate(volume, indices) * inside[:, None]).reshape(*depths.shape, -1)

    part = "volume_renderer."
    (M0, M1, M2), (b0, b1, b2) = weights[f"{part}mlp_weights"].astype(float), weights[f"{part}mlp_biases"].astype(float)
    y = relu(relu(f @ M0 + b0) @ M1 + b1)
    density = np.logaddexp(
        0, y @ weights[f"{part}weight_opacity"].astype(float) + weights[f"{part}bias_opacity"].astype(float)
    )
    code = linear(rays, weights, "linear_ray")[:, None]
    color = sigmoid(
        relu(y @ M2 + b2 + code) @ weights[f"{part}weight_color"].astype(float)
        + weights[f"{part}bias_color"].astype(float)
    )
    after = np.exp(-np.cumsum(density * intervals, axis=1))  # transmittance
    share = np.concatenate([np.ones_like(after[:, :1]), after[:, :-1]], axis=1) - after
    opacity = 1 - after[:, -1]
    features = (share[..., None] * color).sum(1) + (1 - opacity[:, None])
    return features, opacity, (share * depths).sum(1), near, far


def positions(
    origin: np.ndarray, direction: np.ndarray, box: np.ndarray, s: float, config: Mapping[str, Any]
) -> tuple[np.ndarray, ...]:
    """Depths [R, S] of the positions on the rays, the intervals before them, near and far end [R] of the even part."""
    S = int(config["samples"])
    if config["background"]:
        distance = np.linalg.norm(origin)
        near = np.full(len(direction), max(distance - BACKGROUND_REACH, 0) * s)
        far = np.full(len(direction), (distance + BACKGROUND_REACH) * s)
    else:
        first, second = (box[0] - origin) / direction, (box[1] - origin) / direction
        near, far = np.minimum(first, second).max(-1).clip(min=0), np.maximum(first, second).min(-1)
        hit = near < far
        near, far = np.where(hit, near, MISSED[0] * s), np.where(hit, far, MISSED[1] * s)
    spacing = (far - near)[:, None] / (S - 1)
    depths, intervals = near[:, None] + spacing * np.arange(S), np.repeat(spacing, S, axis=1)
    if config["background"]:
        behind = far[:, None] / (1 + (float(config["disparity_at_infinity"]) - 1) * (np.arange(S) + 1) / S)
        intervals = np.concatenate([intervals, np.diff(behind, axis=1, prepend=far[:, None])], axis=1)
        depths = np.concatenate([depths, behind], axis=1)
    return depths, intervals, near, far


def contract(points: np.ndarray, p: float) -> np.ndarray:
    """Normalised points [..., 3] -> grid coordinates."""
    n0 = np.abs(points).max(-1, keepdims=True)
    outer = np.where(np.abs(points) == n0, np.sign(points) * (1 / p - (1 / p - 1) / n0), points / n0)
    return np.where(n0 <= 1, points, outer) * p


def expand(features: np.ndarray, weights: Arrays, name: str) -> np.ndarray:
    """[..., K] -> [..., C]: three layers, or one where the file has one."""
    if f"{name}.weight" in weights:
        return linear(features, weights, name)
    hidden = relu(linear(features, weights, f"{name}.0.conv"))
    return linear(relu(linear(hidden, weights, f"{name}.1.conv")), weights, f"{name}.2")
