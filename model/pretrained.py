"""Folders that hold a trained network (the paper, figure 2): config.json and model.safetensors. Nothing is unpickled.

The weights carry a digest of themselves and of config.json. The only places of `model/` that touch files are this,
model/weights.py, model/adapter.py, model/base/stable_diffusion.py and model/base/folder.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from model.config import ProjectionConfig, ViewDiffConfig
from model.weights import DIGEST, check_content, read_weights, write_weights

KIND = "viewdiff-unet"
FORMAT_VERSION = 2
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_PREDICTION_TYPE = "prediction_type"  # of the U-Net's config, which the library would warn of

Network = TypeVar("Network", bound=nn.Module)


def write_network(
    folder: Path | str, unet: UNet2DConditionModel, config: ViewDiffConfig, weights: dict[str, Tensor]
) -> None:
    """Write weights and config.json into `folder`; config.json last, so that it marks completion."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).unlink(missing_ok=True)  # of a network that was here before
    unet_config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    record = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "unet": unet_config,
        "viewdiff": dataclasses.asdict(config),
    }
    write_weights(folder / WEIGHTS_FILE, weights, about=_canonical(record))
    (folder / CONFIG_FILE).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


def read_network(folder: Path | str, build: Callable[[UNet2DConditionModel, ViewDiffConfig], Network]) -> Network:
    """The network in `folder`, on the CPU, in the precision that it was saved in; `build` makes it from a stock U-Net
    and its config.

    Raises ValueError when the folder holds something else, a newer format, weights that do not fit its config, are not
    as they were written, or are not finite.
    """
    folder = Path(folder)
    record = _read_config(folder / CONFIG_FILE)
    weights, metadata = read_weights(folder / WEIGHTS_FILE)
    check_content(folder / WEIGHTS_FILE, weights, about=_canonical(record), digest=metadata.get(DIGEST))
    try:
        network = build(_unet(record["unet"]), parse_config(record["viewdiff"]))
    except Exception as error:  # the library checks few settings, so a strange one may end in any error
        raise ValueError(f"{folder / CONFIG_FILE}: does not describe a network ({error})") from error
    check_fit(folder, network.state_dict(), weights)
    network.load_state_dict(weights)
    (dtype, *others) = {value.dtype for value in weights.values()}
    return network if others else network.to(dtype)


def _unet(config: object) -> UNet2DConditionModel:
    """The U-Net with this config, which keeps what the library does not know."""
    if not isinstance(config, dict):  # a name would be looked up on the hub
        raise TypeError(f"unet is {config!r}")
    unet = UNet2DConditionModel.from_config({key: value for key, value in config.items() if key != _PREDICTION_TYPE})
    unet.register_to_config(**config)
    return unet


def _canonical(record: dict[str, Any]) -> str:
    """One text for a config, however its file is laid out."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); give a folder that save_pretrained wrote") from error
    kind = record.get("kind") if isinstance(record, dict) else None
    if kind != KIND:
        raise ValueError(f"{path}: kind is {kind!r}, not {KIND!r}; give a folder that save_pretrained wrote")
    check_version(path, record.get("format_version"), FORMAT_VERSION)
    return record


def check_version(path: Path, found: object, expected: int) -> None:
    """Raise ValueError that says what to do when `path` has another format version than this program reads."""
    if found != expected:
        newer = isinstance(found, int) and found > expected
        advice = "update the program" if newer else "make it again with this version of the program"
        raise ValueError(f"{path}: format version {found}, but this program reads {expected}; {advice}")


def parse_config(values: dict[str, Any]) -> ViewDiffConfig:
    """The config that `dataclasses.asdict` and JSON made `values` of."""
    values = _lists_to_tuples(values)
    return ViewDiffConfig(**{**values, "projection": ProjectionConfig(**values["projection"])})


def _lists_to_tuples(value: Any) -> Any:
    """JSON has no tuples."""
    if isinstance(value, dict):
        return {key: _lists_to_tuples(item) for key, item in value.items()}
    return tuple(_lists_to_tuples(item) for item in value) if isinstance(value, list) else value


def check_fit(folder: Path, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Raise ValueError naming the first keys that are missing, not known, of another shape or not of floating point."""
    differences = [f"missing {key}" for key in expected if key not in found]
    differences += [f"unknown {key}" for key in found if key not in expected]
    differences += [f"{key} of {value.dtype}" for key, value in found.items() if not value.is_floating_point()]
    differences += [
        f"{key} {tuple(found[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in found and found[key].shape != value.shape
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(
            f"{folder}: weights of another architecture than the network's: {'; '.join(differences[:3])}{more}"
        )
