"""From the names of a golden file to this project's parameter names, for any file of the two forms.

A golden file is an .npz with inputs `in.*`, weights `w.*`, settings `config.*`, intermediates `mid.*` and outputs
`out.*` of one layer, made by other code. Its kind is told from its keys.

Shape letters: B samples, V views, N = B*V, C channels, h × w pixels, L tokens.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile, is_zipfile

import numpy as np
import torch
from torch import Tensor

Kind = Literal["projection", "cross_frame", "text"]

# What files of each kind must hold: key -> number of dimensions.
REQUIRED: Mapping[Kind, Mapping[str, int]] = {
    "projection": {
        "in.latents": 5,  # [B, V, C, h, w]
        "in.world_to_camera": 4,  # [B, V, 4, 4]
        "in.K": 4,  # [B, V, 3, 3] pixels, whose centres lie at whole numbers
        "in.bbox": 3,  # [B, 2, 3]
        "in.temb": 3,  # [B, V, D]
        "w.linear_ray.weight": 2,
        "config.background": 0,
        "config.grid_size": 0,
        "config.samples": 0,
        "config.foreground_fraction": 0,
        "config.disparity_at_infinity": 0,
        "config.hidden_views": 0,
        "config.image_height": 0,
        "config.image_width": 0,
        "out.features": 5,  # [B, V, C, h, w]
    },
    "cross_frame": {
        "in.hidden": 3,  # [N, L, C]
        "in.temb": 2,  # [N, D]
        "in.z": 2,  # [N, 10]
        "w.attn.to_q.weight": 2,
        "w.proc.to_q_lora.up.weight": 2,
        "config.include_self": 0,
        "config.num_views": 0,
        "config.heads": 0,
        "out.hidden": 3,  # [N, L, C]
    },
    "text": {
        "in.hidden": 3,  # [N, L, C]
        "in.text": 3,  # [N, M, C_text]
        "in.z": 2,  # [N, 10]
        "w.attn.to_q.weight": 2,
        "w.proc.to_q_lora.up.weight": 2,
        "config.num_views": 0,
        "config.heads": 0,
        "out.hidden": 3,  # [N, L, C]
    },
}


class NotGoldenError(Exception):
    """The file is not of a form that can be checked; the message says why."""


@dataclass(frozen=True)
class GoldenFile:
    """One golden file's contents by name, without the prefixes, floating point as float32."""

    name: str
    kind: Kind
    inputs: dict[str, Tensor]
    weights: dict[str, Tensor]
    config: dict[str, float]
    middle: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> GoldenFile:
        """Raises NotGoldenError when the file is missing, no .npz, or of another form."""
        if not is_zipfile(path):
            raise NotGoldenError(f"{path}: not an .npz file, or missing")
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
        except (OSError, ValueError, BadZipFile, zlib.error) as error:
            raise NotGoldenError(f"{path}: not a readable .npz file ({error})") from error
        kind = _kind(path, {key: np.ndim(value) for key, value in arrays.items()})

        def part(prefix: str) -> dict[str, Tensor]:
            return {
                key.removeprefix(prefix): torch.from_numpy(np.asarray(value))
                for key, value in arrays.items()
                if key.startswith(prefix)
            }

        config = {key: value.item() for key, value in part("config.").items()}
        return cls(path.name, kind, part("in."), part("w."), config, part("mid."), part("out."))


def _kind(path: Path, dimensions: Mapping[str, int]) -> Kind:
    """The kind whose required keys are all there; `dimensions` holds the file's own keys."""
    missing = {kind: set(required.items()) - set(dimensions.items()) for kind, required in REQUIRED.items()}
    closest = min(missing, key=lambda kind: len(missing[kind]))
    if missing[closest]:
        wanted = ", ".join(f"{key} of {count} dimensions" for key, count in sorted(missing[closest]))
        raise NotGoldenError(f"{path}: not a golden file; the closest kind, {closest}, also has {wanted}")
    return closest


def parameters(golden: GoldenFile) -> dict[str, Tensor]:
    """The file's weights as a state dict of our layer: a ProjectionLayer or an attention processor with its layer.

    For attention, names start with `attention.` (diffusers' Attention) and `processor.`. Raises NotGoldenError for a
    weight that has no counterpart.
    """
    if golden.kind != "projection":
        return _attention_state(golden)
    state: dict[str, Tensor] = {}
    for name, value in golden.weights.items():
        state.update(_projection_parameters(name, value))
    return state


PROJECTION_PREFIXES: Mapping[str, str] = {
    "proj_in_2d.0.conv.": "compress.0.",
    "proj_in_2d.1.conv.": "compress.2.",
    "proj_in_2d.2.": "compress.4.",
    "proj_out_2d_fg.0.conv.": "expand_foreground.0.",
    "proj_out_2d_fg.1.conv.": "expand_foreground.2.",
    "proj_out_2d_fg.2.": "expand_foreground.4.",
    "proj_out_2d_bg.0.conv.": "expand_background.0.",
    "proj_out_2d_bg.1.conv.": "expand_background.2.",
    "proj_out_2d_bg.2.": "expand_background.4.",
    "proj_out_2d_bg.": "expand_background.",
    "ibrnet_aggregator.ray_depth_encoder.": "aggregator.ray_encoder.",
    "ibrnet_aggregator.temb_encoder.": "aggregator.timestep_encoder.",
    "ibrnet_aggregator.base_fc.": "aggregator.view_encoder.",
    "ibrnet_aggregator.vis_fc.": "aggregator.visibility.",
    "ibrnet_aggregator.vis_fc2.": "aggregator.weight.",
    "ibrnet_aggregator.statistics_out.": "aggregator.output.",
    "blocks_3d.0.time_emb_proj.": "refiner.enter.timestep.",
    "blocks_3d.0.": "refiner.enter.",
    "linear_ray.": "renderer.color_ray.",
}


def _projection_parameters(name: str, value: Tensor) -> dict[str, Tensor]:
    if name.startswith("volume_renderer."):
        return _renderer_parameters(name.removeprefix("volume_renderer."), value)
    for theirs, ours in PROJECTION_PREFIXES.items():
        if name.startswith(theirs):
            # 1×1 convolutions of a volume or of what was rendered are linear layers over channels here.
            is_linear = ours.startswith(("aggregator.", "expand_"))
            return {ours + name.removeprefix(theirs): value.flatten(1) if is_linear and value.ndim > 2 else value}
    raise NotGoldenError(f"weight w.{name} has no counterpart in a projection layer")


def _renderer_parameters(name: str, value: Tensor) -> dict[str, Tensor]:
    """Their matrices multiply from the right (y = x M), a linear layer's from the left."""
    stacked = ("renderer.trunk.0", "renderer.trunk.2", "renderer.color_hidden")
    conversions: dict[str, Callable[[Tensor], dict[str, Tensor]]] = {
        "mlp_weights": lambda M: {f"{layer}.weight": m.mT for layer, m in zip(stacked, M, strict=True)},
        "mlp_biases": lambda b: {f"{layer}.bias": m for layer, m in zip(stacked, b, strict=True)},
        "weight_opacity": lambda w: {"renderer.density.weight": w[None]},
        "bias_opacity": lambda b: {"renderer.density.bias": b},
        "weight_color": lambda M: {"renderer.color.weight": M.mT},
        "bias_color": lambda b: {"renderer.color.bias": b},
        "bg_color": _no_parameter_but_ones,
    }
    if name not in conversions:
        raise NotGoldenError(f"weight w.volume_renderer.{name} has no counterpart in the volume renderer")
    return conversions[name](value)


def _no_parameter_but_ones(color: Tensor) -> dict[str, Tensor]:
    if not torch.equal(color, torch.ones_like(color)):
        raise NotGoldenError(f"w.volume_renderer.bg_color is {color.tolist()}; ours is always one")
    return {}


def _attention_state(golden: GoldenFile) -> dict[str, Tensor]:
    """Ours keeps the low-rank terms of projections that read the same tokens together, theirs one by one."""
    weights, state = dict(golden.weights), {}
    groups = (
        {"qkv": ("to_q", "to_k", "to_v")} if golden.kind == "cross_frame" else {"q": ("to_q",), "kv": ("to_k", "to_v")}
    )
    of_views = []
    for group, projections in (groups | {"out": ("to_out",)}).items():
        ours = f"processor.low_rank_{group}"
        downs = torch.cat([_take(weights, f"proc.{projection}_lora.down.weight") for projection in projections])
        linear = golden.weights["attn.to_out.0.weight" if group == "out" else f"attn.{projections[0]}.weight"]
        state[f"{ours}.down.weight"], of_view = downs.tensor_split([linear.shape[1]], dim=1)  # columns of [x; z; e]
        of_views += [of_view] if of_view.shape[1] else []
        for number, projection in enumerate(projections):
            state[f"{ours}.up.{number}.weight"] = _take(weights, f"proc.{projection}_lora.up.weight")
    state["processor.down_view.weight"] = torch.cat(of_views)
    prefixes = {"attn.": "attention.", "proc.temb_proj.": "processor.timestep_code."}
    for name, value in weights.items():
        known = [(theirs, ours) for theirs, ours in prefixes.items() if name.startswith(theirs)]
        if not known:
            raise NotGoldenError(f"weight w.{name} has no counterpart in an attention layer")
        theirs, ours = known[0]
        state[ours + name.removeprefix(theirs)] = value
    return state


def _take(weights: dict[str, Tensor], name: str) -> Tensor:
    if name not in weights:
        raise NotGoldenError(f"weight w.{name} is missing")
    return weights.pop(name)
