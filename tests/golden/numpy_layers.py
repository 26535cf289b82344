"""Layers in NumPy, from their definitions, for tests/golden/reading.py. Weights go by their names in a golden file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]


def linear(values: np.ndarray, weights: Arrays, name: str) -> np.ndarray:
    matrix = weights[f"{name}.weight"].astype(float)
    return values @ matrix.reshape(matrix.shape[:2]).T + weights[f"{name}.bias"].astype(float)


def elu_mlp(values: np.ndarray, weights: Arrays, name: str) -> np.ndarray:
    return elu(linear(elu(linear(values, weights, f"{name}.0")), weights, f"{name}.2"))


def convolve(values: np.ndarray, weights: Arrays, name: str) -> np.ndarray:
    """[C, *sizes] with a kernel of odd side, zeros around: as many values as before."""
    kernel = weights[f"{name}.weight"].astype(float)
    sizes, side = values.shape[1:], kernel.shape[-1]
    padded = np.pad(values, [(0, 0), *[(side // 2, side // 2)] * len(sizes)])
    total = sum(
        np.tensordot(
            kernel[(slice(None), slice(None), *tap)], padded[(slice(None), *map(slice, tap, np.add(tap, sizes)))], 1
        )
        for tap in np.ndindex(*(side,) * len(sizes))
    )
    return total + weights[f"{name}.bias"].astype(float).reshape(-1, *[1] * len(sizes))


def normalize(values: np.ndarray, weights: Arrays, name: str) -> np.ndarray:
    """Each channel of [K, G, G, G] on its own."""
    axes = tuple(range(1, values.ndim))
    scaled = (values - values.mean(axes, keepdims=True)) / np.sqrt(values.var(axes, keepdims=True) + 1e-5)
    scale, shift = (weights[f"{name}.{key}"].astype(float).reshape(-1, 1, 1, 1) for key in ("weight", "bias"))
    return scaled * scale + shift


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def elu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)
