"""Files of weights (safetensors) with a digest of what they hold: of itself a flipped bit is only another number."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

DIGEST = "sha256"  # the key in a file's metadata
_TENSORS_AT_ONCE = 4


def write_weights(
    path: Path, weights: Mapping[str, Tensor], *, about: str, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, on any device. `about`: a text that belongs to them and counts in the digest."""
    whole = {name: value.detach().contiguous().cpu() for name, value in weights.items()}
    save_file(whole, path, metadata={**(metadata or {}), DIGEST: _digest(whole, about)})


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a file, on the CPU, and its metadata. Raises ValueError when it is missing or cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); restore the folder, or save the network again") from error


def check_content(path: Path, weights: Mapping[str, Tensor], *, about: str, digest: str | None) -> None:
    """Raise ValueError when the file at `path`, or the text `about` it, is not as it was written, or holds values that
    are not finite. `digest`: as its metadata says; None in files from before there was one.
    """
    if digest is not None and digest != _digest(weights, about):
        raise ValueError(
            f"{path}: is damaged, or its settings were changed: the digest is another than when it was written; "
            "restore the folder, or save the network again"
        )
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise ValueError(
                f"{path}: {name} holds values that are not finite, with which every picture is black; restore the "
                "folder, or take a model from before the training went wrong"
            )


def _digest(weights: Mapping[str, Tensor], about: str) -> str:
    """SHA-256 of the text, and of every tensor's name, type, shape and bytes, in the order of their names."""
    names = sorted(weights)
    with ThreadPoolExecutor(_TENSORS_AT_ONCE) as pool:  # gigabytes; the bytes are hashed without Python's lock
        digests = pool.map(lambda name: _digest_tensor(weights[name]), names)
        digest = hashlib.sha256(hashlib.sha256(about.encode()).digest())
        for name, of_tensor in zip(names, digests, strict=True):
            value = weights[name]
            digest.update(f"{len(name)} {name} {value.dtype} {tuple(value.shape)}".encode() + of_tensor)
    return digest.hexdigest()


def _digest_tensor(value: Tensor) -> bytes:
    return hashlib.sha256(value.flatten().view(torch.uint8).numpy()).digest()
