"""Compare this project's layers with golden files: `python -m tests.golden.check FILE.npz ...`.

Prints the largest absolute error of every tensor. Exit code 0 when all are within the tolerance, 1 when not, 2 when a
file is not of a form that can be checked. `--version` chooses how volumes are computed; "triton" on a CPU needs
TRITON_INTERPRET=1 in the environment.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from model.cameras import Cameras
from model.config import ProjectionConfig
from model.layers.attention import ConditionedTextAttention, CrossFrameAttention
from model.layers.projection import ProjectionLayer
from model.layers.views import Scene, ViewContext
from model.volume.filling import ViewSamples, unproject
from model.volume.geometry import LayerShape, compute_geometry
from model.volume.kernels.selection import Version, use
from model.volume.rendering import Rays, Rendered, background_near_far, box_near_far
from model.volume.space import SceneFrame, voxel_grid
from tests.golden.names import GoldenFile, NotGoldenError, parameters

# The files hold float32 results of sums over some hundred terms of size 1; another order of summation changes about
# 1e-6, a wrong formula far more than this.
TOLERANCE = 1e-4


def tensors(golden: GoldenFile, version: Version = "tiled") -> dict[str, tuple[Tensor, Tensor]]:
    """What our layer makes of the file's inputs: "out.features" -> (ours, theirs), of equal shapes.

    `version` is that of the volume computations, see model/volume/kernels/selection.py.
    """
    with torch.no_grad(), use(version):
        ours = _run_projection(golden) if golden.kind == "projection" else _run_attention(golden)
    theirs = {f"mid.{key}": value for key, value in golden.middle.items()}
    theirs |= {f"out.{key}": value for key, value in golden.outputs.items()}
    unknown = sorted(key for key in theirs if key not in ours or ours[key].numel() != theirs[key].numel())
    if unknown:
        raise NotGoldenError(f"{golden.name}: our layer has nothing of the size of {', '.join(unknown)}")
    if "mid.depth" in theirs:  # the depth of a voxel that a view does not see means nothing
        theirs["mid.depth"] = theirs["mid.depth"].where(ours["mid.weights"] > 0, 0.0)
    return {key: (ours[key].float().reshape(value.shape), value.float()) for key, value in theirs.items()}


def errors(golden: GoldenFile, version: Version = "tiled") -> dict[str, float]:
    """Largest absolute error of each tensor of the file; infinite where ours is not finite."""
    return {
        key: (ours - theirs).abs().nan_to_num(nan=torch.inf).max().item()
        for key, (ours, theirs) in tensors(golden, version).items()
    }


def projection_layer(golden: GoldenFile) -> ProjectionLayer:
    """Our layer with the file's weights and settings."""
    layer = ProjectionLayer(
        golden.inputs["latents"].shape[2],
        int(golden.config["grid_size"]),
        golden.inputs["temb"].shape[-1],
        _projection_config(golden),
        layer_index=0,
    )
    _load(layer, golden)
    return layer


def _projection_config(golden: GoldenFile) -> ProjectionConfig:
    config, feature_channels = golden.config, golden.weights["linear_ray.weight"].shape[0]
    return ProjectionConfig(
        blocks=(),
        background=bool(config["background"]),
        foreground_fraction=config["foreground_fraction"],
        disparity_at_infinity=config["disparity_at_infinity"],
        num_samples=int(config["samples"]),
        refine_channels=(feature_channels,),
        feature_channels=feature_channels,
    )


def projection_scene(golden: GoldenFile) -> Scene:
    """The file's cameras and bounds. There pixel centres lie at whole numbers, here at half-integers."""
    intrinsics, shape = golden.inputs["K"].clone(), golden.inputs["latents"].shape
    intrinsics[..., :2, 2] += 0.5
    image_size = (int(golden.config["image_height"]), int(golden.config["image_width"]))
    cameras = Cameras(golden.inputs["world_to_camera"], intrinsics, image_size)
    return Scene(cameras, golden.inputs["bbox"], torch.zeros(*shape[:2], 2))


def projection_views(golden: GoldenFile) -> ViewContext:
    """The file's scene and timesteps."""
    latents, scene = golden.inputs["latents"], projection_scene(golden)
    size = (latents.shape[-2], latents.shape[-1])
    shape, config = LayerShape(int(golden.config["grid_size"]), size), _projection_config(golden)
    return ViewContext(
        num_views=latents.shape[1],
        latent_size=size,
        conditioning=latents.new_zeros(latents.shape[0] * latents.shape[1], 10),
        timestep_embedding=golden.inputs["temb"].flatten(0, 1),
        geometry=compute_geometry(scene.cameras, scene.scene_bounds, [shape], config),
        hidden_views=int(golden.config["hidden_views"]),
        opacity_noise=None,
    )


def _run_projection(golden: GoldenFile) -> dict[str, Tensor]:
    layer, views = projection_layer(golden), projection_views(golden)
    latents = golden.inputs["latents"]
    seen: dict[str, Any] = {}
    layer.aggregator.register_forward_hook(lambda _, inputs, output: seen.update(inputs=inputs, aggregated=output))
    layer.refiner.register_forward_hook(lambda _, inputs, output: seen.update(refined=output))
    layer.renderer.register_forward_hook(lambda _, inputs, output: seen.update(rendered=output))
    height, width = latents.shape[-2:]
    out = layer(latents.flatten(0, 1).flatten(2).mT, height, width, views)
    rendered: Rendered = seen["rendered"]
    return {
        **_geometry(layer.grid_size, projection_scene(golden), _projection_config(golden), (height, width)),
        **_samples(unproject(*seen["inputs"][:2])),
        "mid.aggregated": seen["aggregated"],
        "mid.refined": seen["refined"],
        "mid.rendered": rendered.features.flatten(3).mT.flatten(1, 2),
        "mid.mask": rendered.opacity,
        "mid.exp_depth": rendered.depth,
        "out.features": out.mT,
        "out.mask": rendered.opacity,
        "out.depth": rendered.depth,
    }


def _geometry(grid_size: int, scene: Scene, config: ProjectionConfig, size: tuple[int, int]) -> dict[str, Tensor]:
    cameras, frame = scene.cameras.resize(size), SceneFrame.from_bounds(scene.scene_bounds)
    fraction = config.foreground_fraction if config.background else None
    grid = voxel_grid(grid_size, fraction, scene.scene_bounds.device)
    directions, rays = cameras.ray_directions().flatten(2, 3), Rays.from_cameras(cameras, frame, size)
    box = frame.to_normalized(scene.scene_bounds)
    near, far = (
        background_near_far(rays, frame.half_size) if config.background else box_near_far(rays, box, frame.half_size)
    )
    return {
        "mid.points": frame.to_world(grid.points.float()).mT,
        "mid.rays": directions,
        "mid.centers": cameras.centers()[:, :, None].expand_as(directions),
        "mid.near": near,
        "mid.far": far,
    }


def _samples(samples: ViewSamples) -> dict[str, Tensor]:
    grid_size = round(samples.depth.shape[-1] ** (1 / 3))
    volume = torch.cat([samples.features, samples.rays], dim=-1).mT.unflatten(-1, (grid_size,) * 3)
    return {
        "mid.volume": volume,
        "mid.weights": samples.valid.float().reshape(volume[:, :, :1].shape),
        "mid.depth": samples.depth.reshape(volume[:, :, :1].shape),
    }


def _run_attention(golden: GoldenFile) -> dict[str, Tensor]:
    hidden, z, config = golden.inputs["hidden"], golden.inputs["z"], golden.config
    text, timestep_embedding = golden.inputs.get("text"), golden.inputs.get("temb")
    rank = golden.weights["proc.to_q_lora.up.weight"].shape[1]
    channels = golden.weights["attn.to_q.weight"].shape[0]
    attention = Attention(
        query_dim=hidden.shape[-1],
        cross_attention_dim=None if text is None else text.shape[-1],
        heads=int(config["heads"]),
        dim_head=channels // int(config["heads"]),
    )
    processor: nn.Module
    if timestep_embedding is None:
        processor = ConditionedTextAttention(attention, rank=rank)
    else:
        processor = CrossFrameAttention(
            attention,
            rank=rank,
            timestep_channels=timestep_embedding.shape[-1],
            include_self=bool(config["include_self"]),
            cross_frame=True,
        )
    _load(nn.ModuleDict({"attention": attention, "processor": processor}), golden)
    attention.set_processor(processor)
    num_views = int(config["num_views"])
    views = ViewContext(
        num_views=num_views,
        latent_size=(1, hidden.shape[1]),
        conditioning=z,
        timestep_embedding=hidden.new_zeros(hidden.shape[0], 1) if timestep_embedding is None else timestep_embedding,
        geometry={},
        hidden_views=0,
        opacity_noise=None,
    )
    return {"out.hidden": attention(hidden, text, views=views)}


def _load(module: nn.Module, golden: GoldenFile) -> None:
    """Every weight of the file must have its place in the module, and the other way round."""
    try:
        module.load_state_dict(parameters(golden))
    except RuntimeError as error:
        raise NotGoldenError(f"{golden.name}: weights do not fit our layer: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the files named on the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden.check", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.npz")
    parser.add_argument("--version", choices=get_args(Version), default="tiled")
    given = parser.parse_args(arguments)
    worst = 0.0
    for path in given.files:
        try:
            found = errors(GoldenFile.read(path), given.version)
        except NotGoldenError as error:
            print(error, file=sys.stderr)
            return 2
        print(path.name)
        for key, largest in found.items():
            print(f"  {key:<16} {largest:.2e}{'' if largest <= TOLERANCE else '   TOO LARGE'}")
            worst = max(worst, largest)
    print(f"largest error {worst:.2e}, tolerance {TOLERANCE:.0e}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
