"""What a network refuses: scenes that make no sense, inputs and settings that do not fit. All errors name the input."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from model.cameras import Cameras
from model.config import ProjectionConfig, SamplingConfig
from model.diffusion.sampling import generate_views
from model.layers.augment import projectable_blocks
from model.layers.views import Scene
from model.unet import ViewDiffUNet
from tests.support.factories import TEXT_CHANNELS, look_at_cameras, tiny_unet
from tests.support.tiny_network import (
    base_scheduler,
    random_inputs,
    random_request,
    random_scene,
    tiny_config,
    tiny_network,
)


def _spoiled(part: str, index: tuple[int, ...], value: float) -> Scene:
    """A scene of two samples of three views with one wrong number."""
    scene = random_scene(2, 3)
    cameras = scene.cameras
    tensors = {
        "world_to_camera": cameras.world_to_camera.clone(),
        "intrinsics": cameras.intrinsics.clone(),
        "scene_bounds": scene.scene_bounds.clone(),
        "intensity": scene.intensity.clone(),
    }
    tensors[part][index] = value
    return Scene(
        Cameras(tensors["world_to_camera"], tensors["intrinsics"], cameras.image_size),
        tensors["scene_bounds"],
        tensors["intensity"],
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_other_types_than_float_are_refused(dtype: torch.dtype) -> None:
    scene = random_scene(1, 2)
    with pytest.raises(ValueError, match="scene_bounds: dtype"):
        dataclasses.replace(scene, scene_bounds=scene.scene_bounds.to(dtype))
    with pytest.raises(ValueError, match="intensity: dtype"):
        dataclasses.replace(scene, intensity=scene.intensity.to(dtype))
    with pytest.raises(ValueError, match="world_to_camera has dtype"):
        scene.cameras.to(dtype)


WRONG_SCENES = [
    pytest.param(_spoiled("world_to_camera", (0, 1, 3, 0), 2.0), "last row of world_to_camera", id="transposed"),
    pytest.param(_spoiled("world_to_camera", (1, 2, 0, 3), math.nan), "cameras: .* must be finite", id="nan pose"),
    pytest.param(_spoiled("world_to_camera", (1, 2, 0, 3), math.inf), "cameras: .* must be finite", id="far pose"),
    pytest.param(_spoiled("intrinsics", (0, 1, 0, 2), math.nan), "cameras: .* must be finite", id="nan intrinsics"),
    pytest.param(_spoiled("intrinsics", (0, 1, 1, 1), 0.0), "cameras: focal lengths must be positive", id="no focus"),
    pytest.param(_spoiled("intrinsics", (0, 1, 2, 2), 0.0), "cameras: .*intrinsics .* singular", id="no last row"),
    pytest.param(_spoiled("scene_bounds", (1, 1, 2), math.nan), "scene_bounds: must be finite", id="nan bounds"),
    # The same as the minimum, for a cube without height.
    pytest.param(
        _spoiled("scene_bounds", (1, 1, 2), -0.6), "scene_bounds: the maximum .* sample 1 has", id="flat bounds"
    ),
    pytest.param(_spoiled("intensity", (0, 2, 1), math.inf), "intensity: must be finite", id="infinite intensity"),
]


@pytest.mark.parametrize(("scene", "message"), WRONG_SCENES)
def test_a_scene_that_makes_no_sense_is_refused(scene: Scene, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scene.check()
    with pytest.raises(ValueError, match=message):
        tiny_network()(**random_inputs(2, 3) | {"scene": scene})


def test_a_scene_that_makes_sense_is_returned() -> None:
    scene = random_scene(2, 3)
    assert scene.check() is scene


@pytest.mark.parametrize("without", [(), ("projection",)])
def test_generation_refuses_cameras_that_make_no_sense(without: tuple[str, ...]) -> None:
    """Whatever is left out: cameras also say where a view is seen from."""
    asked = random_request()
    cameras = asked.scene.cameras
    pose = cameras.world_to_camera.clone()
    pose[0, 0, 0, 3] = math.nan
    spoiled_scene = Scene.neutral(dataclasses.replace(cameras, world_to_camera=pose), asked.scene.scene_bounds)
    spoiled = dataclasses.replace(asked, scene=spoiled_scene)
    with pytest.raises(ValueError, match=r"cameras: .* must be finite"):
        generate_views(
            tiny_network(tiny_config(without=without)), base_scheduler(), spoiled, SamplingConfig(num_steps=1)
        )


def _scene(**changes: Any) -> dict[str, Scene]:
    return {"scene": dataclasses.replace(random_scene(2, 3), **changes)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": torch.zeros(2, 0, 4, 8, 8)}, "views ≥ 1"),
        ({"latents": torch.zeros(2, 3, 5, 8, 8)}, r"views ≥ 1, 4, height"),
        ({"latents": torch.zeros(2, 3, 4, 8, 8).long()}, r"latents: dtype torch\.int64 must be a floating"),
        ({"latents": torch.zeros(2, 3, 4, 0, 8)}, r"latents: shape \(2, 3, 4, 0, 8\) must be"),
        ({"latents": torch.zeros(2, 3, 4, 9, 8)}, r"\(9, 8\) must be divisible by 2"),
        ({"timesteps": torch.zeros(2, 2)}, r"timesteps: shape \(2, 2\) must be \(2, 3\)"),
        ({"text": torch.zeros(1, 5, TEXT_CHANNELS)}, "text"),
        ({"text": torch.zeros(2, 5, 3)}, "text"),
        (_scene(cameras=look_at_cameras(1, 3)), r"cameras: shape \(1, 3\) must be \(2, 3\)"),
        (_scene(cameras=look_at_cameras(2, 4)), r"cameras: shape \(2, 4\) must be \(2, 3\)"),
        (_scene(scene_bounds=torch.zeros(2, 3)), "scene_bounds"),
        (_scene(intensity=torch.zeros(2, 3)), "intensity"),
        ({"hidden_views": 3}, "hidden_views 3"),
        ({"opacity_noise_seeds": torch.tensor([1])}, r"opacity_noise_seeds: torch.int64 \(1,\) must be .* \(2,\)"),
        ({"opacity_noise_seeds": torch.ones(2)}, r"opacity_noise_seeds: torch.float32 \(2,\) must be torch.int64"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    network = ViewDiffUNet(tiny_unet(), tiny_config(without=("projection",)))
    with pytest.raises(ValueError, match=message):
        network(**random_inputs(2, 3) | change)


def test_unknown_blocks_are_named_with_those_that_exist() -> None:
    projection = ProjectionConfig(blocks=(("down_blocks.7", 4),))
    with pytest.raises(ValueError, match=r"down_blocks\.7; .* down_blocks\.0, down_blocks\.1, mid_block, up_blocks\.0"):
        ViewDiffUNet(tiny_unet(), dataclasses.replace(tiny_config(), projection=projection))
    partly = tiny_unet(down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"))
    assert projectable_blocks(partly) == ("down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1")


def test_a_unet_is_augmented_only_once() -> None:
    unet = tiny_unet()
    ViewDiffUNet(unet, tiny_config())
    with pytest.raises(ValueError, match="only once"):
        ViewDiffUNet(unet, tiny_config())


def test_configs_are_frozen_and_checked() -> None:
    with pytest.raises(ValueError, match="rank 0"):
        tiny_config(rank=0)
    with pytest.raises(ValueError, match=r"without \['all'\]: choose from projection, cross_frame"):
        tiny_config(without=("intensity", "all"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_config().rank = 3  # type: ignore[misc]
