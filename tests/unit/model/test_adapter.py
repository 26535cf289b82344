"""model/adapter.py: adapters in PEFT's format, on one base."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.adapter import freeze_base, read_adapter, use_adapter, write_adapter
from model.config import ProjectionConfig, ViewDiffConfig
from model.layers.views import Scene
from model.unet import ViewDiffUNet
from tests.support.factories import TEXT_CHANNELS, look_at_cameras, randomize, tiny_unet

CONFIG = ViewDiffConfig(rank=2, projection=ProjectionConfig(blocks=(("mid_block", 4),), num_samples=4))


def network(*, base_seed: int = 0, config: ViewDiffConfig = CONFIG) -> ViewDiffUNet:
    torch.manual_seed(7)
    return ViewDiffUNet(tiny_unet(seed=base_seed), config)


def inputs() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    return {
        "latents": torch.randn(1, 3, 4, 8, 8, generator=generator),
        "timesteps": torch.full((1, 3), 400),
        "text": torch.randn(1, 5, TEXT_CHANNELS, generator=generator),
        "scene": Scene(look_at_cameras(1, 3), torch.tensor([[[-1.0] * 3, [1.0] * 3]]), torch.full((1, 3, 2), 0.4)),
    }


def train_adapter(folder: Path, *, seed: int) -> Tensor:
    """Train a few steps from a frozen base, save; returns what the network then makes of `inputs`."""
    trained = network()
    freeze_base(trained)
    target = torch.randn(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.AdamW([p for group in trained.parameter_groups().values() for p in group], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (trained(**inputs()) - target).square().mean().backward()
        optimizer.step()
    write_adapter(folder, trained, base="some/base")
    with torch.no_grad():
        return trained(**inputs())


# What a process that knows nothing but the folders computes.
FRESH_PROCESS = """
import sys, torch
from pathlib import Path
from model.adapter import read_adapter, use_adapter
from tests.unit.model.test_adapter import inputs, network
folder = Path(sys.argv[1])
adapters = {name: read_adapter(folder / name) for name in ("bear", "hydrant")}
fresh = network()
outputs = {}
with torch.no_grad():
    for name in ("bear", "hydrant", "bear again"):
        use_adapter(fresh, adapters[name.split()[0]])
        outputs[name] = fresh(**inputs())
torch.save(outputs, folder / "outputs.pt")
"""


def test_two_adapters_on_one_base_in_a_fresh_process(tmp_path: Path) -> None:
    before = {name: train_adapter(tmp_path / name, seed=seed) for seed, name in enumerate(("bear", "hydrant"))}
    assert not torch.equal(before["bear"], before["hydrant"])
    subprocess.run([sys.executable, "-c", FRESH_PROCESS, str(tmp_path)], check=True)
    after = torch.load(tmp_path / "outputs.pt", weights_only=True)
    assert torch.equal(after["bear"], before["bear"])
    assert torch.equal(after["hydrant"], before["hydrant"])
    assert torch.equal(after["bear again"], before["bear"])


def test_only_what_is_added_is_trained_and_the_base_stays(tmp_path: Path) -> None:
    trained, stock = network(), dict(tiny_unet().named_parameters())
    freeze_base(trained)
    trainable = {name for name, parameter in trained.unet.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in trained.unet.named_parameters()} - stock.keys()
    groups = trained.parameter_groups()
    assert sum(len(group) for group in groups.values()) == len(trainable)
    randomize(trained, seed=4)
    write_adapter(tmp_path, trained, base="some/base")
    other = network()
    with pytest.raises(ValueError, match="another base model"):  # `randomize` changed the base as well
        use_adapter(other, read_adapter(tmp_path))


def test_peft_reads_the_config_and_its_names_are_pefts(tmp_path: Path) -> None:
    write_adapter(tmp_path, network(), base="some/base")
    config = PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(config, LoraConfig)
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (2, 2, "some/base")
    weights = load_file(tmp_path / "adapter_model.safetensors")
    path = "base_model.model.mid_block.attentions.0.transformer_blocks.0"
    # 32 channels, the vector z of 10, the timestep code of 8.
    assert weights[f"{path}.attn1.to_q.lora_A.weight"].shape == (2, 32 + 10 + 8)
    assert weights[f"{path}.attn1.to_out.0.lora_A.weight"].shape == (2, 32)
    assert weights[f"{path}.attn2.to_k.lora_A.weight"].shape == (2, TEXT_CHANNELS + 10)
    assert weights[f"{path}.attn2.to_k.lora_B.weight"].shape == (32, 2)
    assert any(".projection.compress." in key for key in weights)
    added = sum(p.numel() for p in network().parameters()) - sum(p.numel() for p in tiny_unet().parameters())
    assert sum(value.numel() for value in weights.values()) == added


def test_a_base_in_half_precision_is_the_same_base(tmp_path: Path) -> None:
    write_adapter(tmp_path, network(), base="some/base")
    use_adapter(network().bfloat16(), read_adapter(tmp_path))


def test_an_adapter_for_something_else_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path, network(), base="some/base")
    adapter = read_adapter(tmp_path)
    with pytest.raises(ValueError, match=r"another base model .* load the base that"):
        use_adapter(network(base_seed=1), adapter)
    with pytest.raises(ValueError, match="include_self is True, the network's False"):
        use_adapter(network(config=replace(CONFIG, include_self=False)), adapter)
    with pytest.raises(ValueError, match="rank is 2, the network's 3"):
        use_adapter(network(config=replace(CONFIG, rank=3)), adapter)
    background = replace(CONFIG.projection, background=False, foreground_fraction=0.4)
    with pytest.raises(ValueError, match=r"projection\.foreground_fraction is 0\.5, the network's 0\.4"):
        use_adapter(network(config=replace(CONFIG, projection=background)), adapter)
    use_adapter(network(config=replace(CONFIG, gradient_checkpointing=True)), adapter)  # saves memory, no more


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "lora"}, "kind is 'lora'"),
        ({"format_version": "2"}, "format version 2, .* update the program"),
        ({"viewdiff": "{}"}, "does not describe an adapter"),
        ({"viewdiff": json.dumps({"rank": 0})}, "does not describe an adapter"),
    ],
)
def test_files_that_are_no_adapter_of_ours_are_refused(tmp_path: Path, change: dict[str, str], message: str) -> None:
    write_adapter(tmp_path, network(), base="some/base")
    path = tmp_path / "adapter_model.safetensors"
    adapter = read_adapter(tmp_path)
    metadata = {"kind": "viewdiff-adapter", "format_version": "1", "base_digest": "0", "viewdiff": "{}"}
    save_file(adapter.weights, path, metadata=metadata | change)
    with pytest.raises(ValueError, match=message):
        read_adapter(tmp_path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        read_adapter(tmp_path)
