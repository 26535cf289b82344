"""Golden tensors: our layers, with a file's weights, give the file's outputs and intermediates."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model.volume.kernels.selection import Version
from tests.golden.check import TOLERANCE, errors, main
from tests.golden.names import GoldenFile, NotGoldenError

PROJECTION = ["fg_resnet.npz", "bg_resnet.npz"]
ATTENTION = ["cfa_with_self.npz", "cfa_others_only.npz", "text_attention.npz"]


@pytest.fixture(scope="module")
def golden_dir(shared_dir: Path) -> Path:
    folder = shared_dir / "golden"
    if not folder.is_dir():
        pytest.skip("needs the golden tensors")
    return folder


@pytest.mark.parametrize(
    ("name", "version"),
    [(name, version) for name in PROJECTION for version in ("plain", "tiled")]
    + [(name, "tiled") for name in ATTENTION],
)
def test_our_layer_reproduces_the_file(golden_dir: Path, name: str, version: Version) -> None:
    golden = GoldenFile.read(golden_dir / name)
    found = errors(golden, version)
    assert len(found) == len(golden.middle) + len(golden.outputs)
    assert {key: error for key, error in found.items() if error > TOLERANCE} == {}


def test_triton_reproduces_the_files(golden_dir: Path) -> None:
    """In a process of its own, because Triton decides at its import whether it interprets."""
    pytest.importorskip("triton", reason="needs Triton")
    command = [sys.executable, "-m", "tests.golden.check", "--version", "triton"]
    files = [str(golden_dir / name) for name in PROJECTION]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run([*command, *files], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", ["bg_resnet.npz", "cfa_with_self.npz"])
def test_a_changed_weight_or_input_is_noticed(golden_dir: Path, tmp_path: Path, name: str) -> None:
    with np.load(golden_dir / name) as archive:
        arrays = dict(archive)
    changed = "w.volume_renderer.weight_color" if name.startswith("bg") else "w.proc.to_q_lora.down.weight"
    arrays[changed] = arrays[changed] * 1.1
    np.savez(tmp_path / name, **arrays)
    assert main([str(tmp_path / name)]) == 1


def test_the_command_prints_every_tensor(golden_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(golden_dir / "fg_resnet.npz"), str(golden_dir / "text_attention.npz")]) == 0
    printed = capsys.readouterr().out
    for tensor in ("mid.volume", "mid.aggregated", "out.features", "out.hidden"):
        assert tensor in printed


def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, archive, wrong_shape = tmp_path / "text.npz", tmp_path / "other.npz", tmp_path / "shape.npz"
    text.write_text("not an archive")
    np.savez(archive, weights=np.zeros(3))
    np.savez(wrong_shape, **{"in.hidden": np.zeros(3), "in.text": np.zeros((1, 2, 3))})
    for path, message in [
        (text, "not an .npz"),
        (tmp_path / "missing.npz", "missing"),
        (archive, "not a golden file"),
        (wrong_shape, "in.hidden of 3 dimensions"),
    ]:
        with pytest.raises(NotGoldenError, match=message):
            GoldenFile.read(path)
        assert main([str(path)]) == 2
        assert message in capsys.readouterr().err


def test_weights_of_another_layer_are_refused(golden_dir: Path, tmp_path: Path) -> None:
    with np.load(golden_dir / "fg_resnet.npz") as archive:
        arrays = dict(archive)
    np.savez(tmp_path / "more.npz", **arrays, **{"w.blocks_3d.1.norm1.weight": np.ones(16, np.float32)})
    with pytest.raises(NotGoldenError, match=r"blocks_3d\.1"):
        errors(GoldenFile.read(tmp_path / "more.npz"))
    del arrays["w.linear_ray.bias"]
    np.savez(tmp_path / "fewer.npz", **arrays)
    with pytest.raises(NotGoldenError, match=r"renderer\.color_ray\.bias"):
        errors(GoldenFile.read(tmp_path / "fewer.npz"))
