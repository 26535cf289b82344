"""Adapters: what training adds to a frozen base model, in PEFT's checkpoint format.

A folder holds adapter_config.json, which PEFT's `LoraConfig` reads and writes, and adapter_model.safetensors. In it are
the low-rank terms W' [x; z; e] of the attention layers (the paper, section 3.1) as `...to_q.lora_A.weight` and
`...to_q.lora_B.weight`, where A's columns are those of x, then z, then e; and, as PEFT's `modules_to_save`, the
projection layers and timestep codes whole. What PEFT's config has no place for is in the safetensors file's metadata:
format version, the network's settings, and digests of the base that the adapter was trained on and of the file itself.

PEFT itself can read the config, but not put the adapter onto a stock U-Net, whose linear layers do not see z and e:
`use_adapter` does. Several adapters can be read and used one after another on one base, which stays where it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from model.config import ViewDiffConfig
from model.layers.attention import LowRankTerm, ViewAttention
from model.pretrained import check_fit, check_version, parse_config
from model.unet import ViewDiffUNet
from model.weights import DIGEST, check_content, read_weights, write_weights

KIND = "viewdiff-adapter"
FORMAT_VERSION = 1
WEIGHTS_FILE = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
TARGET_MODULES = ["to_q", "to_k", "to_v", "to_out.0"]
# Parts of a parameter's name that no stock U-Net has: attention processors, and what model/layers/augment.py adds to a
# block.
ADDED_PARTS = {"processor", "projection", "projection_out", "norm_projection"}
SAVED_WHOLE = ["projection", "projection_out", "norm_projection", "timestep_code"]
# Settings that trade memory for time, and the one whose fields are compared one by one.
MEMORY_SETTINGS = ("gradient_checkpointing", "projection.recompute_volumes", "projection")
# Values of each tensor that the base's digest reads: fine-tuning the whole changes some, and reading all takes minutes.
DIGEST_VALUES = 64


@dataclass(frozen=True, eq=False)
class Adapter:
    """A trained adapter, by the names of its file."""

    config: ViewDiffConfig
    base_digest: str
    weights: dict[str, Tensor]
    folder: Path


def freeze_base(network: ViewDiffUNet) -> None:
    """Leave only what an adapter holds to be trained."""
    for name, parameter in network.unet.named_parameters():
        parameter.requires_grad_(_is_added(name))


def write_adapter(folder: Path | str, network: ViewDiffUNet, *, base: str) -> None:
    """Write the network without its base into `folder`; `base` is the folder or hub id that the base came from."""
    from peft import LoraConfig  # takes seconds to import

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {
        "kind": KIND,
        "format_version": str(FORMAT_VERSION),
        "base_digest": base_digest(network),
        "viewdiff": json.dumps(dataclasses.asdict(network.config), sort_keys=True),
    }
    unfinished = folder / f".{WEIGHTS_FILE}"
    write_weights(unfinished, adapter_state(network), about=_canonical(metadata), metadata=metadata)
    unfinished.replace(folder / WEIGHTS_FILE)
    rank = network.config.rank
    LoraConfig(
        base_model_name_or_path=base,
        auto_mapping={"base_model_class": type(network).__name__, "parent_library": type(network).__module__},
        r=rank,
        lora_alpha=rank,  # scale 1
        target_modules=TARGET_MODULES,
        modules_to_save=SAVED_WHOLE,
        inference_mode=True,
    ).save_pretrained(folder)


def read_adapter(folder: Path | str) -> Adapter:
    """What `write_adapter` wrote.

    Raises ValueError when the folder holds something else, a newer format, or weights that are not as they were
    written or not finite.
    """
    folder = Path(folder)
    path = folder / WEIGHTS_FILE
    weights, metadata = read_weights(path)
    if metadata.get("kind") != KIND:
        raise ValueError(f"{path}: kind is {metadata.get('kind')!r}, not {KIND!r}; it is an adapter of something else")
    version = metadata.get("format_version", "")
    check_version(path, int(version) if version.isdecimal() else version, FORMAT_VERSION)
    digest = metadata.pop(DIGEST, None)
    check_content(path, weights, about=_canonical(metadata), digest=digest)
    try:
        config = parse_config(json.loads(metadata["viewdiff"]))
        return Adapter(config, metadata["base_digest"], weights, folder)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its metadata does not describe an adapter ({error})") from error


def _canonical(metadata: dict[str, str]) -> str:
    """One text for the metadata of an adapter's file, which come in any order."""
    return json.dumps(metadata, sort_keys=True)


@torch.no_grad()
def use_adapter(network: ViewDiffUNet, adapter: Adapter) -> None:
    """Put the adapter's weights in the place of the network's own added ones; the base is not touched.

    Raises ValueError when the adapter was trained on another base, or for a network with other settings.
    """
    found = base_digest(network)
    if adapter.base_digest != found:
        raise ValueError(
            f"{adapter.folder}: was trained on another base model (digest {adapter.base_digest[:12]}, this one's is "
            f"{found[:12]}); load the base that adapter_config.json names, in float32 or bfloat16"
        )
    _check_settings(network.config, adapter)
    check_fit(adapter.folder, adapter_state(network), adapter.weights)
    whole = dict(network.unet.named_parameters())
    for path, term in _terms(network):
        down, up = adapter.weights[f"{path}.lora_A.weight"], adapter.weights[f"{path}.lora_B.weight"]
        term.down.copy_(down[:, : term.down.shape[1]])
        if term.down_view is not None:
            term.down_view.copy_(down[:, term.down.shape[1] :])
        term.up.copy_(up)
    for name in _saved_whole(network):
        whole[name].copy_(adapter.weights[PEFT_PREFIX + name])


def _check_settings(config: ViewDiffConfig, adapter: Adapter) -> None:
    """Raise ValueError when the adapter's network computed something else; how memory is saved does not matter."""

    def mathematics(settings: ViewDiffConfig) -> dict[str, object]:
        fields = parse_config(json.loads(json.dumps(dataclasses.asdict(settings))))  # lists become tuples
        projection = {f"projection.{name}": value for name, value in vars(fields.projection).items()}
        ours = {**vars(fields), **projection, "without": sorted(fields.without)}
        return {name: value for name, value in ours.items() if name not in MEMORY_SETTINGS}

    ours, theirs = mathematics(config), mathematics(adapter.config)
    different = [f"{name} is {theirs[name]}, the network's {ours[name]}" for name in ours if ours[name] != theirs[name]]
    if different:
        raise ValueError(f"{adapter.folder}: was trained with other settings: {'; '.join(different)}")


def base_digest(network: ViewDiffUNet) -> str:
    """SHA-256 of the base's parameters: names, shapes, and evenly spread values as bfloat16, in which a base may be
    loaded too.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(network.unet.named_parameters()):
        if _is_added(name):
            continue
        flat = parameter.detach().flatten()
        places = torch.linspace(0, len(flat) - 1, min(DIGEST_VALUES, len(flat)), dtype=torch.float64).long()
        values = flat[places.to(flat.device)].to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()


def adapter_state(network: ViewDiffUNet) -> dict[str, Tensor]:
    """The network's added parameters by the names of the file."""
    state: dict[str, Tensor] = {}
    for path, term in _terms(network):
        parts = [term.down] if term.down_view is None else [term.down, term.down_view]
        state[f"{path}.lora_A.weight"] = torch.cat(parts, dim=1)
        state[f"{path}.lora_B.weight"] = term.up
    parameters = dict(network.unet.named_parameters())
    return state | {PEFT_PREFIX + name: parameters[name] for name in _saved_whole(network)}


def _terms(network: ViewDiffUNet) -> list[tuple[str, LowRankTerm]]:
    """All low-rank terms, each with the path of its linear layer in the file."""
    return [
        (f"{PEFT_PREFIX}{name}.{term.projection}", term)
        for name, module in network.unet.named_modules()
        if isinstance(module, Attention) and isinstance(module.processor, ViewAttention)
        for term in module.processor.low_rank_terms()
    ]


def _saved_whole(network: ViewDiffUNet) -> list[str]:
    """Names of the added parameters that are no low-rank terms."""
    return [name for name, _ in network.unet.named_parameters() if set(name.split(".")) & set(SAVED_WHOLE)]


def _is_added(name: str) -> bool:
    return bool(set(name.split(".")) & ADDED_PARTS)
