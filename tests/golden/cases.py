"""Golden files of this project's own making: `python -m tests.golden.cases FOLDER` writes them.

Random layers at grid sizes where rounding could put a voxel's centre on the wrong side of the scene's border (14 and
30) or let two equal coordinates differ (12, 14 and 30); what they give is read from tests/golden/reading.py.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests.golden.reading import read_layer

CASES: Mapping[str, tuple[int, bool]] = {  # voxels a side, whether there is a background
    "grid_12_background": (12, True),
    "grid_14": (14, False),
    "grid_14_background": (14, True),
    "grid_30_background": (30, True),
}
V, C, K, SIDE, IMAGE, D, S = 4, 24, 16, 8, 64, 32, 12  # views, channels, latent and image pixels, times, positions


def make_case(grid_size: int, background: bool, seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of a golden file, inputs and weights in float32 and results in float64."""
    random = np.random.default_rng(seed)
    poses, intrinsics = _cameras(random)
    inputs = {
        "latents": random.normal(size=(1, V, C, SIDE, SIDE)),
        "world_to_camera": poses[None],
        "K": intrinsics[None],
        # Off the origin, its largest side 2.
        "bbox": np.array([[[-0.9, -0.7, -0.8], [1.1, 0.8, 0.9]]]),
        "temb": random.normal(size=(1, V, D)),
    }
    config = {
        "background": background,
        "grid_size": grid_size,
        "samples": S,
        "foreground_fraction": 0.5,
        "disparity_at_infinity": 0.5,
        "hidden_views": 1,
        "image_height": IMAGE,
        "image_width": IMAGE,
    }
    inputs = {key: value.astype(np.float32) for key, value in inputs.items()}
    weights = {key: value.astype(np.float32) for key, value in _weights(random, background).items()}
    return {
        **{f"in.{key}": value for key, value in inputs.items()},
        **{f"w.{key}": value for key, value in weights.items()},
        **{f"config.{key}": np.array(value) for key, value in config.items()},
        **read_layer(inputs, weights, config),
    }


def _cameras(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Poses [V, 4, 4] and intrinsics [V, 3, 3] of cameras around the origin that look past it."""
    poses, intrinsics = [], []
    for view in range(V):
        azimuth, elevation, distance = (
            1.5 * view + random.uniform(0, 0.5),
            random.uniform(-0.4, 0.8),
            random.uniform(3, 4),
        )
        direction = (np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation))
        center = distance * np.array(direction)
        forward = random.uniform(-0.2, 0.2, 3) - center
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, (0, 0, 1))
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :3] = right, np.cross(forward, right), forward
        pose[:3, 3] = -pose[:3, :3] @ center
        focal = random.uniform(1.0, 1.4, 2) * IMAGE
        middle = IMAGE / 2 - 0.5 + random.uniform(-2, 2, 2)  # pixel centres at whole numbers
        poses.append(pose)
        intrinsics.append([[focal[0], 0, middle[0]], [0, focal[1], middle[1]], [0, 0, 1]])
    return np.stack(poses), np.array(intrinsics)


def _weights(random: np.random.Generator, background: bool) -> dict[str, np.ndarray]:
    """All weights of a layer; each keeps about the size of what it multiplies."""
    shapes = {
        "proj_in_2d.0.conv": (C, C, 3, 3),
        "proj_in_2d.1.conv": (K, C, 3, 3),
        "proj_in_2d.2": (K, K, 1, 1),
        "ibrnet_aggregator.ray_depth_encoder.0": (K // 2, 4, 1, 1, 1),
        "ibrnet_aggregator.ray_depth_encoder.2": (K, K // 2, 1, 1, 1),
        "ibrnet_aggregator.temb_encoder.0": (D // 2, D),
        "ibrnet_aggregator.temb_encoder.2": (K, D // 2),
        "ibrnet_aggregator.base_fc.0": (2 * K, 3 * K, 1, 1, 1),
        "ibrnet_aggregator.base_fc.2": (K, 2 * K, 1, 1, 1),
        "ibrnet_aggregator.vis_fc.0": (K, K, 1, 1, 1),
        "ibrnet_aggregator.vis_fc.2": (K + 1, K, 1, 1, 1),
        "ibrnet_aggregator.vis_fc2.0": (K, K, 1, 1, 1),
        "ibrnet_aggregator.vis_fc2.2": (1, K, 1, 1, 1),
        "ibrnet_aggregator.statistics_out.0": (K, 2 * K + 1, 1, 1, 1),
        "blocks_3d.0.conv1": (K, K, 3, 3, 3),
        "blocks_3d.0.time_emb_proj": (K, D),
        "blocks_3d.0.conv2": (K, K, 3, 3, 3),
        "linear_ray": (K, 3),
        **_expanders(background),
    }
    weights = {}
    for name, shape in shapes.items():
        weights[f"{name}.weight"] = random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        weights[f"{name}.bias"] = 0.1 * random.normal(size=shape[0])
    for name in ("norm1", "norm2"):
        weights[f"blocks_3d.0.{name}.weight"] = random.uniform(0.5, 1.5, K)
        weights[f"blocks_3d.0.{name}.bias"] = 0.1 * random.normal(size=K)
    renderer = {
        "mlp_weights": random.normal(size=(3, K, K)) / np.sqrt(K),
        "mlp_biases": 0.1 * random.normal(size=(3, K)),
        "weight_opacity": random.normal(size=K) / np.sqrt(K),
        "bias_opacity": np.array([-1.0]),
        "weight_color": random.normal(size=(K, K)) / np.sqrt(K),
        "bias_color": 0.1 * random.normal(size=K),
        "bg_color": np.ones(K),
    }
    return weights | {f"volume_renderer.{key}": value for key, value in renderer.items()}


def _expanders(background: bool) -> dict[str, tuple[int, ...]]:
    names = ["proj_out_2d_fg", *(["proj_out_2d_bg"] if background else [])]
    shapes = {"0.conv": (K, K, 1, 1), "1.conv": (C, K, 1, 1), "2": (C, C, 1, 1)}
    layers = {f"{name}.{layer}": shape for name in names for layer, shape in shapes.items()}
    return layers if background else layers | {"proj_out_2d_bg": (C, K, 1, 1)}


def write_cases(folder: Path) -> list[Path]:
    """Write every case as FOLDER/NAME.npz; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.npz" for name in CASES]
    for path, case in zip(paths, CASES.values(), strict=True):
        np.savez(path, **make_case(*case))
    return paths


if __name__ == "__main__":
    print(*write_cases(Path(sys.argv[1])), sep="\n")
