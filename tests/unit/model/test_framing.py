"""Which cameras do not show the object, and what their matrices may mean instead."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from infra.errors import UserError
from model.cameras import Cameras
from model.config import SamplingConfig
from model.framing import Framing, framing, other_convention
from model.trajectories import OrbitConfig, orbit
from pipelines.generation.generator import SampleRequest

CUBE = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
OPENGL = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))


def path() -> Cameras:
    return orbit(8, image_size=(48, 64))


def test_an_orbit_shows_the_object() -> None:
    found = framing(path(), CUBE)
    assert (found.total, found.missed, str(found)) == (8, 0, "")


def test_each_camera_that_does_not_is_counted_once() -> None:
    matrices = path().world_to_camera.clone()
    half_turn = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    matrices[0] = half_turn @ matrices[0]  # looks away
    matrices[1] = half_turn @ matrices[1]
    matrices[2, 0, 3] += 3.0  # the object is to its right, outside the picture
    matrices[3] = orbit(8, image_size=(48, 64), config=OrbitConfig(radius=0.5)).world_to_camera[3]  # inside
    found = framing(dataclasses.replace(path(), world_to_camera=matrices), CUBE)
    assert found == Framing(total=8, inside=1, away=2, outside=1)
    assert str(found) == "the object is out of the picture in 4 of 8 cameras (2 look away, 1 lies inside it)"
    assert found + found == Framing(total=16, inside=2, away=4, outside=2)


def test_the_object_is_where_its_box_is() -> None:
    matrices = path().world_to_camera.clone()
    shift = torch.tensor([100.0, -50.0, 7.0])
    matrices[:, :3, 3] -= matrices[:, :3, :3] @ shift
    moved = dataclasses.replace(path(), world_to_camera=matrices)
    assert framing(moved, CUBE + shift).missed == 0
    assert framing(moved, CUBE).missed == 8


@pytest.mark.parametrize(
    ("meant", "words"),
    [
        (lambda right: torch.linalg.inv(right), "camera-to-world matrices; invert each"),
        (lambda right: torch.linalg.inv(right) @ OPENGL, "camera-to-world matrices in OpenGL axes"),
        (lambda right: OPENGL @ right, "world-to-camera matrices in OpenGL axes"),
    ],
)
def test_the_convention_that_was_meant_is_recognised(meant: object, words: str) -> None:
    given = dataclasses.replace(path(), world_to_camera=meant(path().world_to_camera))  # type: ignore[operator]
    assert framing(given, CUBE).missed > 4
    assert (other_convention(given, CUBE) or "").startswith(words)


def test_matrices_that_mean_nothing_are_called_nothing() -> None:
    matrices = path().world_to_camera.clone()
    matrices[:, 0, 3] += 1000.0
    assert other_convention(dataclasses.replace(path(), world_to_camera=matrices), CUBE) is None


def test_a_request_of_which_no_camera_shows_the_object_is_refused() -> None:
    def request(matrices: torch.Tensor) -> SampleRequest:
        return SampleRequest(
            world_to_camera=matrices.numpy(),
            intrinsics=path().intrinsics.numpy(),
            image_size=(48, 64),
            scene_bounds=CUBE.numpy(),
            text="a toy",
            known_images=np.zeros((0, 48, 64, 3), np.uint8),
            seed=0,
            sampling=SamplingConfig(),
        )

    right = path().world_to_camera
    with pytest.raises(UserError, match=r"“a toy”: the object is out of the picture in 8 of 8 cameras .* is expected"):
        request(OPENGL @ right)
    close = right.clone()
    close[:, :3, 3] *= 0.01
    with pytest.raises(UserError, match=r"“a toy”: 8 of 8 cameras lie inside the object's box; .* in the same units"):
        request(close)
    mixed = right.clone()
    mixed[:7] = OPENGL @ right[:7]
    assert request(mixed).text == "a toy"  # a model may be asked for views that show little
