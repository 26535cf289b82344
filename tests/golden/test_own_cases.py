"""Golden files of our own making: the literal reading of tests/golden/reading.py against every version of the layer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from model.volume.kernels.selection import Version
from tests.golden.cases import CASES, make_case, write_cases
from tests.golden.check import errors
from tests.golden.names import GoldenFile
from tests.golden.reading import read_layer

# Sums of some hundred float32 terms of size one; the 3D CNN's normalisations divide by small spreads.
FLOAT32 = 2e-5
# Voxel centres are float32 in every version.
FLOAT64 = 5e-6


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {path.stem: path for path in write_cases(tmp_path_factory.mktemp("golden"))}


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def too_large(found: dict[str, float], tolerance: float) -> dict[str, float]:
    return {key: error for key, error in found.items() if error > tolerance}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("version", ["plain", "tiled"])
def test_our_layer_is_as_read(files: dict[str, Path], name: str, version: Version) -> None:
    assert too_large(errors(GoldenFile.read(files[name]), version), FLOAT32) == {}


@pytest.mark.parametrize("name", CASES)
def test_the_plain_version_in_float64(float64: None, name: str) -> None:
    case = make_case(*CASES[name])
    golden = GoldenFile(
        name=name,
        kind="projection",
        inputs={key[3:]: torch.from_numpy(value).double() for key, value in case.items() if key.startswith("in.")},
        weights={key[2:]: torch.from_numpy(value).double() for key, value in case.items() if key.startswith("w.")},
        config={key[7:]: value.item() for key, value in case.items() if key.startswith("config.")},
        middle={key[4:]: torch.from_numpy(value) for key, value in case.items() if key.startswith("mid.")},
        outputs={key[4:]: torch.from_numpy(value) for key, value in case.items() if key.startswith("out.")},
    )
    assert too_large(errors(golden, "plain"), FLOAT64) == {}


def test_triton_is_as_read(files: dict[str, Path]) -> None:
    """In a process of its own, because Triton decides at its import whether it interprets."""
    pytest.importorskip("triton", reason="needs Triton")
    command = [sys.executable, "-m", "tests.golden.check", "--version", "triton", str(files["grid_14_background"])]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_reading_reproduces_what_other_code_made(shared_dir: Path) -> None:
    with np.load(shared_dir / "golden" / "bg_resnet.npz") as archive:
        arrays = dict(archive)
    inputs = {key[3:]: value for key, value in arrays.items() if key.startswith("in.")}
    weights = {key[2:]: value for key, value in arrays.items() if key.startswith("w.")}
    config = {key[7:]: value.item() for key, value in arrays.items() if key.startswith("config.")}
    for key, value in read_layer(inputs, weights, config).items():
        expected = arrays[key] * (arrays["mid.weights"] > 0) if key == "mid.depth" else arrays[key]
        np.testing.assert_allclose(value.reshape(expected.shape), expected, rtol=0, atol=FLOAT64)
