"""model/pretrained.py: a network as a folder; and what a network knows of itself without values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import ViewDiffConfig
from model.pretrained import FORMAT_VERSION
from model.unet import ViewDiffUNet
from tests.support.factories import tiny_unet
from tests.support.tiny_network import random_inputs, tiny_config, tiny_network


def test_stock_keys_are_unchanged() -> None:
    stock = tiny_unet(seed=3).state_dict()
    network = ViewDiffUNet(tiny_unet(), tiny_config(projection={"merge": "zero_init"}))
    result = network.unet.load_state_dict(stock, strict=False)
    assert not result.unexpected_keys
    added = ("processor.", "projection.", "projection_out.", "norm_projection.")
    assert all(any(part in key for part in added) for key in result.missing_keys)
    assert torch.equal(
        network.unet.state_dict()["mid_block.attentions.0.proj_in.weight"],
        stock["mid_block.attentions.0.proj_in.weight"],
    )


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [
        tiny_config(projection={"merge": "zero_init", "aggregation": "mean"}),
        tiny_config(include_self=False, without=("projection", "intensity")),
    ],
)
def test_save_and_load_round_trip_is_exact(config: ViewDiffConfig, tmp_path: Path) -> None:
    network = tiny_network(config)
    network.save_pretrained(tmp_path / "model")
    loaded = ViewDiffUNet.from_pretrained(tmp_path / "model")
    assert loaded.config == config
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    inputs = random_inputs(1, 2)
    assert torch.equal(loaded(**inputs), network(**inputs))


def _saved(folder: Path) -> dict[str, Any]:
    tiny_network().save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


def test_loading_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json: cannot be read"):
        ViewDiffUNet.from_pretrained(tmp_path / "nothing")

    record, path = _saved(tmp_path), tmp_path / "config.json"
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors")  # as it was without digests
    settings = record["viewdiff"]
    for change, message in (
        ({"format_version": FORMAT_VERSION + 1}, f"format version {FORMAT_VERSION + 1}, .*; update the program"),
        ({"format_version": FORMAT_VERSION - 1}, f"format version {FORMAT_VERSION - 1}, .*; make it again"),
        ({"format_version": None}, "format version None, .*; make it again"),
        ({"kind": "something"}, "kind is 'something'"),
        (
            {"viewdiff": settings | {"rank": 3}},
            r"down_view.weight \(6, 18\) instead of \(9, 18\).* and \d+ more",
        ),
        ({"viewdiff": settings | {"without": ["projection"]}}, "unknown unet.*projection"),
        ({"viewdiff": settings | {"without": ["everything"]}}, "does not describe a network .*everything"),
        ({"viewdiff": settings | {"flavour": 3}}, "does not describe a network .*flavour"),
        ({"viewdiff": settings | {"projection": None}}, "does not describe a network"),
        ({"unet": record["unet"] | {"norm_num_groups": 0}}, r"does not describe a network \(.*by zero"),
        ({"unet": "some/model"}, r"does not describe a network \(unet is 'some/model'\)"),  # not looked up on the hub
    ):
        path.write_text(json.dumps(record | change))
        with pytest.raises(ValueError, match=message):
            ViewDiffUNet.from_pretrained(tmp_path)

    path.write_text(json.dumps(record))
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot be read"):
        ViewDiffUNet.from_pretrained(tmp_path)


def test_a_changed_config_is_noticed_before_a_network_is_made_of_it(tmp_path: Path) -> None:
    record = _saved(tmp_path)
    record["unet"]["norm_num_groups"] = 0
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"is damaged, or its settings were changed"):
        ViewDiffUNet.from_pretrained(tmp_path)


def test_what_is_predicted_is_kept(tmp_path: Path) -> None:
    network = tiny_network()
    network.save_pretrained(tmp_path)
    assert ViewDiffUNet.from_pretrained(tmp_path).prediction_type is None
    network.unet.register_to_config(prediction_type="v_prediction", sample_size=3)
    network.save_pretrained(tmp_path)
    loaded = ViewDiffUNet.from_pretrained(tmp_path)
    assert loaded.prediction_type == "v_prediction"
    assert loaded.unet.config.sample_size == 3
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_bytes() == (tmp_path / "config.json").read_bytes()


def test_a_network_keeps_its_precision(tmp_path: Path) -> None:
    network = tiny_network().bfloat16()
    network.save_pretrained(tmp_path)
    loaded = ViewDiffUNet.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    inputs = random_inputs(1, 2)
    assert torch.equal(loaded(**inputs), network(**inputs))
    weights = load_file(tmp_path / "model.safetensors")
    key = next(iter(weights))
    save_file(weights | {key: weights[key].long()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"another architecture .* of torch\.int64"):
        ViewDiffUNet.from_pretrained(tmp_path)


def test_parameter_groups_hold_every_parameter_once() -> None:
    network = ViewDiffUNet(tiny_unet(), tiny_config())
    groups = network.parameter_groups()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert sorted(names[id(p)] for group in groups.values() for p in group) == sorted(names.values())
    assert groups["renderer"]
    assert all(".renderer." in names[id(parameter)] for parameter in groups["renderer"])
    assert not any(".renderer." in names[id(parameter)] for parameter in groups["unet"])


def test_meta_network_counts_parameters_without_values() -> None:
    network = ViewDiffUNet.meta(dict(tiny_unet().config), tiny_config())
    assert all(parameter.is_meta for parameter in network.parameters())
    real = ViewDiffUNet(tiny_unet(), tiny_config())
    assert {k: v.shape for k, v in network.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}
