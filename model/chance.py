"""Random numbers as a pure function of what they are for: no state, any order, whole arrays at a time.

numpy's generators take ten microseconds to be seeded, which for a sample of cached latents is as long as everything
else together.
"""

from __future__ import annotations

import zlib

import numpy as np

# SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"): increment and finalizer.
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_MANTISSA_BITS = 53


def uniform(purpose: str, seed: int, positions: np.ndarray, count: int) -> np.ndarray:
    """[B, count] numbers in [0, 1), float64, independent between purposes, seeds, `positions` [B] ≥ 0 and columns."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64
        stream = _mix(_mix(np.uint64(seed) + _INCREMENT) ^ np.uint64(zlib.crc32(purpose.encode())))
        keys = _mix(stream + positions.astype(np.uint64) * _INCREMENT)
        numbers = _mix(keys[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _INCREMENT)
    return (numbers >> np.uint64(64 - _MANTISSA_BITS)) * 2.0**-_MANTISSA_BITS


def distinct(numbers: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[B, V] from `numbers` [B, V] in [0, 1): in every row V different integers in [0, counts[row]), each ordered
    choice equally likely. counts [B] ≥ V.
    """
    num_picks = numbers.shape[1]
    # The k-th pick is a place among those that remain; earlier picks, lowest first, move it up to the place it means.
    picks = (numbers * (counts[:, None] - np.arange(num_picks))).astype(np.int64)
    for k in range(1, num_picks):
        earlier = np.sort(picks[:, :k], axis=1)
        for other in range(k):
            picks[:, k] += picks[:, k] >= earlier[:, other]
    return picks


def _mix(values: np.ndarray | np.uint64) -> np.ndarray:
    mixed = values ^ (values >> _SHIFTS[0])
    mixed = mixed * _MULTIPLIERS[0]
    mixed = (mixed ^ (mixed >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return np.asarray(mixed ^ (mixed >> _SHIFTS[2]))
