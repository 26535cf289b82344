"""A model's folder is read as it was written or not at all, and never with values that are not finite."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.adapter import read_adapter, write_adapter
from model.unet import ViewDiffUNet
from model.weights import check_content, read_weights, write_weights
from tests.support.tiny_network import tiny_network

WEIGHTS = {
    "whole": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "scalar": torch.tensor(3.0),
    "empty": torch.zeros(0, 5),
}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_the_digest_is_of_names_types_shapes_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    write_weights(path, WEIGHTS, about="settings", metadata={"more": "text"})
    digest = hashlib.sha256(hashlib.sha256(b"settings").digest())
    for text, array in (
        ("5 empty torch.float32 (0, 5)", np.zeros(0, np.float32)),
        ("4 half torch.bfloat16 (2,)", np.array([0x3FC0, 0xC000], np.uint16)),
        ("6 scalar torch.float32 ()", np.float32(3)),
        ("5 whole torch.float32 (3, 4)", np.arange(12, dtype=np.float32)),
    ):
        digest.update(text.encode() + hashlib.sha256(array.tobytes()).digest())
    found, metadata = read_weights(path)
    assert equal(found, WEIGHTS)
    assert metadata == {"more": "text", "sha256": digest.hexdigest()}
    check_content(path, found, about="settings", digest=metadata["sha256"])
    for weights, about in (
        (WEIGHTS, "other settings"),
        ({**WEIGHTS, "whole": WEIGHTS["whole"].reshape(4, 3)}, "settings"),
        ({**WEIGHTS, "half": WEIGHTS["half"].view(torch.float16)}, "settings"),
        ({("hole" if name == "whole" else name): value for name, value in WEIGHTS.items()}, "settings"),
        ({name: value for name, value in WEIGHTS.items() if name != "empty"}, "settings"),
    ):
        with pytest.raises(ValueError, match=r"weights\.safetensors: is damaged, or its settings were changed: .*; re"):
            check_content(path, weights, about=about, digest=metadata["sha256"])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["half", "scalar", "whole"])
def test_values_that_are_not_finite_are_named(value: float, name: str, tmp_path: Path) -> None:
    weights = {key: tensor.clone() for key, tensor in WEIGHTS.items()}
    weights[name].view(-1)[-1] = value
    with pytest.raises(ValueError, match=rf"w: {name} holds values that are not finite, .* black; restore"):
        check_content(tmp_path / "w", weights, about="", digest=None)


def read_network(folder: Path) -> dict[str, Tensor]:
    return ViewDiffUNet.from_pretrained(folder).state_dict()


def read_network_adapter(folder: Path) -> dict[str, Tensor]:
    return read_adapter(folder).weights


def write_network_adapter(network: ViewDiffUNet, folder: Path) -> None:
    write_adapter(folder, network, base="some/base")


KINDS = (
    (ViewDiffUNet.save_pretrained, read_network, "model.safetensors"),
    (write_network_adapter, read_network_adapter, "adapter_model.safetensors"),
)
Write, Read = Callable[[ViewDiffUNet, Path], None], Callable[[Path], dict[str, Tensor]]


@pytest.mark.parametrize(("write", "read", "name"), KINDS)
def test_flipped_bits_are_refused(write: Write, read: Read, name: str, tmp_path: Path) -> None:
    write(tiny_network(), tmp_path)
    whole = read(tmp_path)
    path = tmp_path / name
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    bits = np.random.default_rng(0).integers(header * 8, path.stat().st_size * 8, size=20)
    for bit in (header * 8, path.stat().st_size * 8 - 1, *bits.tolist()):
        flip(path, bit)
        with pytest.raises(ValueError, match=rf"{name}: is damaged"):
            read(tmp_path)
        flip(path, bit)
    assert equal(read(tmp_path), whole)


@pytest.mark.parametrize(("write", "read", "name"), KINDS)
def test_flipped_bits_of_what_describes_the_weights(write: Write, read: Read, name: str, tmp_path: Path) -> None:
    """Names, shapes, settings: refused, unless the flip is of something that means nothing, as a space."""
    write(tiny_network(), tmp_path)
    whole = read(tmp_path)
    refused = 0
    for path in (tmp_path / name, tmp_path / "config.json"):
        if not path.exists():
            continue
        length = int.from_bytes(path.read_bytes()[:8], "little") if path.name == name else path.stat().st_size
        for bit in np.random.default_rng(1).integers(8 * length, size=40).tolist():
            flip(path, bit)
            try:
                assert equal(read(tmp_path), whole)
            except ValueError:
                refused += 1
            flip(path, bit)
    assert refused >= 30


@pytest.mark.parametrize(("write", "read", "name"), KINDS)
def test_a_model_that_went_wrong_is_refused(write: Write, read: Read, name: str, tmp_path: Path) -> None:
    network = tiny_network()
    with torch.no_grad():
        next(value for key, value in network.named_parameters() if "timestep_code" in key).view(-1)[0] = math.nan
    write(network, tmp_path)
    with pytest.raises(ValueError, match=rf"{name}: .*timestep_code.* holds values that are not finite"):
        read(tmp_path)


@pytest.mark.parametrize(("write", "read", "name"), KINDS)
def test_files_from_before_there_was_a_digest_are_read(write: Write, read: Read, name: str, tmp_path: Path) -> None:
    write(tiny_network(), tmp_path)
    whole = read(tmp_path)
    with safe_open(tmp_path / name, framework="pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "sha256"}
    save_file(load_file(tmp_path / name), tmp_path / name, metadata=metadata)
    assert equal(read(tmp_path), whole)


def test_a_setting_that_was_changed_is_noticed(tmp_path: Path) -> None:
    """Also one that every weight still fits."""
    tiny_network().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record))  # laid out in another way, it is the same
    ViewDiffUNet.from_pretrained(tmp_path)
    record["viewdiff"]["projection"]["foreground_fraction"] = 0.25
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="or its settings were changed"):
        ViewDiffUNet.from_pretrained(tmp_path)


def test_the_same_weights_make_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tiny_network().save_pretrained(tmp_path / name)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
