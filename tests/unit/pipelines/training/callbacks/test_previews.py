"""Preview pictures of a training: the truth, what the model makes of it, and the depth it renders."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from model.base.stable_diffusion import save_base
from model.base.stand_in import build_tiny_base
from model.diffusion.sampling import RenderedDepth
from pipelines.training.callbacks.previews import DrawPreviews, depth_row
from tests.support.tiny_network import random_request, tiny_config, tiny_network
from tests.support.training_inputs import BASE, IMAGE_SIZE


def test_near_is_bright_and_every_view_has_its_place() -> None:
    depth = torch.full((1, 2, 4, 4), 5.0)
    depth[0, 1, :, 2:] = 1.0
    row = depth_row(RenderedDepth(depth, torch.ones_like(depth)), 16, 8)
    assert (row.shape, row.dtype) == ((16, 16, 3), np.uint8)
    brightness = row.sum(axis=-1)
    assert brightness[:, 13:].min() > 3 * brightness[:, :11].max() + 100


@pytest.mark.parametrize(("without", "num_rows"), [((), 3), (("projection",), 2)])
def test_depth_is_below_the_pictures_of_a_model_that_renders_it(
    tmp_path: Path, without: tuple[str, ...], num_rows: int
) -> None:
    save_base(build_tiny_base(BASE, image_size=IMAGE_SIZE, words=["apple"], seed=0).frozen(), tmp_path / "base")
    request = random_request(1, 3)
    unet = tiny_network(tiny_config(without=without))
    draw = DrawPreviews(unet, request, base_dir=tmp_path / "base", folder=tmp_path / "previews", every_steps=2)
    for step in (1, 2):
        draw(SimpleNamespace(step=step))  # all that it looks at
    (path,) = (tmp_path / "previews").iterdir()
    picture = np.asarray(Image.open(path))
    side = picture.shape[1] // 3
    assert path.name == "step-000002.png"
    assert picture.shape == (num_rows * side, 3 * side, 3)
    truth, generated, *depth = np.split(picture, num_rows)
    assert np.array_equal(truth[:, :side], generated[:, :side])  # the known view comes back as given
    assert not np.array_equal(truth[:, side:], generated[:, side:])
    assert all(row.std() > 0 for row in depth)
