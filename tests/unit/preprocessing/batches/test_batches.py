"""A sample is a function of the seed and its position, whatever it is batched with and whoever loads it."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from infra.errors import UserError
from infra.storage.files import digest_file
from model.base.stable_diffusion import BaseModel, load_base
from model.cameras import Cameras
from model.layers.views import Scene
from preprocessing.batches.batches import TrainBatches
from preprocessing.batches.loader import load_batches
from preprocessing.captions.files import read_sequence_captions
from preprocessing.config import LatentsConfig
from preprocessing.latents import reading as latents_module
from preprocessing.latents import writing
from preprocessing.latents.reading import LatentCache
from preprocessing.latents.writing import LatentsWriter, plan_units
from preprocessing.sequences.images import intensity
from preprocessing.shards.reading import FrameIndex
from preprocessing.shards.schema import write_manifest
from tests.support.training_inputs import IMAGE_SIZE, NUM_FRAMES, RandomImages, write_inputs
from tests.support.trap import Trap

NUM_VIEWS, SEED = 3, 7
CPU = torch.device("cpu")
# float16 keeps 11 bits of values of order one.
HALF = 2e-3


def write(root: Path, **latents: Any) -> Path:
    write_inputs(root, LatentsConfig(batch_size=8, num_prior_images=3, prior_num_steps=2, **latents))
    return root


def batches(root: Path, **settings: Any) -> TrainBatches:
    captions = read_sequence_captions(root / "captions")
    index, latents = FrameIndex.open(root / "shards").with_captions(captions), LatentCache(root / "latents")
    return TrainBatches(index, RandomImages(), latents, **({"seed": SEED, "num_views": NUM_VIEWS} | settings))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole pictures, encoded."""
    return write(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def cropped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four crops of each picture, encoded."""
    return write(tmp_path_factory.mktemp("cropped"), num_crops=4, smallest_crop=0.5)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing encoded: training reads the pictures."""
    return write(tmp_path_factory.mktemp("pictures"), num_crops=0, smallest_crop=0.5)


def assert_equal(batch: object, other: object) -> None:
    for field in fields(batch):  # type: ignore[arg-type]
        a, b = getattr(batch, field.name), getattr(other, field.name)
        if isinstance(a, Scene | Cameras):
            assert_equal(a, b)
        else:
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, field.name


def test_a_sample_is_what_its_position_says(root: Path) -> None:
    made = batches(root)
    choice = made.order.choose(np.array([5]))
    sequence, rows = made.order.sequences[choice.sequences[0]], choice.rows[0].tolist()
    batch = made.load([5])
    assert batch.positions == (5,)
    assert batch.frames.shape == (1, NUM_VIEWS, 8, *made.latents.latent_shape[1:])
    assert_equal(batch.scene.cameras[0], made.index.cameras(rows))
    # The cache has the statistics of the stored pictures, which stand-ins are here.
    truth = [intensity(RandomImages().image(row)) for row in rows]
    torch.testing.assert_close(batch.scene.intensity[0], torch.tensor(truth))
    text = made.latents.text([made.latents.caption_number(sequence.captions[choice.captions[0]])])
    assert torch.equal(batch.text, text)
    assert batch.scene.scene_bounds.tolist() == [sequence.scene_bounds.tolist()]


def test_latents_are_drawn_around_the_mean(root: Path) -> None:
    made = batches(root)
    batch = made.load([5])
    shape = (1, NUM_VIEWS, *made.latents.latent_shape)
    mean, one_off = (made.latents.latents(batch.frames, noise) for noise in (torch.zeros(shape), torch.ones(shape)))
    noise = (made.views(batch, CPU).latents - mean) / (one_off - mean)
    # 768 normal numbers: the mean's standard error is 0.036, the deviation's 0.026; five of them
    assert abs(noise.mean().item()) < 0.18
    assert abs(noise.std().item() - 1) < 0.13


@pytest.mark.parametrize("num_crops", [1, 0])
def test_a_base_model_made_for_larger_pictures_fits(tmp_path: Path, num_crops: int) -> None:
    """As Stable Diffusion 2.1 is for 512 pixels: prior samples have the frames' size, and so has the noise."""
    latents = LatentsConfig(batch_size=8, num_prior_images=3, prior_num_steps=2, num_crops=num_crops)
    write_inputs(tmp_path, latents, base_image_size=2 * IMAGE_SIZE)
    made, base = batches(tmp_path), load_base(tmp_path / "base").frozen()
    assert base.image_size == 2 * IMAGE_SIZE
    batch = made.load([5, 6])
    assert made.views(batch, CPU, base).latents.shape == (2, NUM_VIEWS, 4, 8, 8)
    assert made.prior(batch, CPU).latents.shape == (2, 4, 8, 8)
    assert made.mean_latents([0, 1, 2], base).shape == (3, 4, 8, 8)
    assert made.latents.latent_shape == (4, 8, 8)


def test_latents_of_two_sizes_are_refused(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    manifest_path = tmp_path / "latents" / "latents.json"
    manifest = json.loads(manifest_path.read_bytes())
    del manifest["sha256"]
    write_manifest(manifest_path, manifest | {"latent_shape": [4, 16, 16]})
    with pytest.raises(UserError, match=r"damaged \(prior: rows of shape \(4, 8, 8\), the latents' is \(4, 16, 16\)\)"):
        LatentCache(tmp_path / "latents")


def test_cached_moments_are_the_encoder_s(root: Path) -> None:
    made, base = batches(root), load_base(root / "base").frozen()
    rows = [4, 0, 9]
    images = torch.from_numpy(np.stack([RandomImages().image(row) for row in rows])).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = base.latents_from_moments(base.encode_moments(images.float() / 255))
    torch.testing.assert_close(made.mean_latents(rows, None), expected, rtol=HALF, atol=HALF)
    with torch.no_grad():
        text = base.encode_text(["", "a red apple"])
    numbers = [0, made.latents.caption_number("a red apple")]
    torch.testing.assert_close(made.latents.text(numbers).float(), text, rtol=HALF, atol=HALF)


@pytest.mark.parametrize("name", ["root", "cropped", "pictures"])
def test_batching_changes_no_sample(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    made = batches(folder)
    whole, part = made.load(range(4)), made.load(range(2, 3))
    for field in ("frames", "text", "prior", "prior_text"):
        assert torch.equal(getattr(whole, field)[2:3], getattr(part, field))
    assert torch.equal(whole.scene.cameras.intrinsics[2:3], part.scene.cameras.intrinsics)
    assert_equal(whole, batches(folder).load(range(4)))
    assert not torch.equal(whole.frames, batches(folder, seed=8).load(range(4)).frames)
    assert not torch.equal(whole.frames[0], whole.frames[1])
    if name != "pictures":
        assert torch.equal(made.views(whole, CPU).latents[2:3], made.views(part, CPU).latents)


def test_each_crop_has_its_own_camera_and_intensity(cropped: Path) -> None:
    made = batches(cropped)
    batch, choice = made.load(range(40)), made.order.choose(np.arange(40))
    plain = made.index.cameras(choice.rows.reshape(-1))
    cameras = batch.scene.cameras.intrinsics.reshape(-1, 3, 3)
    scale = cameras[:, 0, 0] / plain.intrinsics[:, 0, 0]
    assert torch.allclose(scale, cameras[:, 1, 1] / plain.intrinsics[:, 1, 1])
    sides = IMAGE_SIZE / scale
    assert torch.allclose(sides, sides.round(), atol=1e-3)
    assert sides.round().unique().numel() > 5
    assert sides.min() >= IMAGE_SIZE / 2
    assert 0.15 < (sides.round() == IMAGE_SIZE).float().mean() < 0.4  # every fourth is the whole picture
    corner = plain.intrinsics[:, :2, 2] - cameras[:, :2, 2] / scale[:, None]
    assert torch.allclose(corner, corner.round(), atol=1e-3)
    assert (corner + sides[:, None] <= IMAGE_SIZE + 1e-3).all()
    for view in (0, 7, 50):
        left, top = (int(value) for value in corner[view].round())
        side = int(sides[view].round())
        part = RandomImages().image(int(choice.rows.reshape(-1)[view]))[top : top + side, left : left + side]
        if side == IMAGE_SIZE:
            expected = torch.tensor(intensity(part))
            torch.testing.assert_close(batch.scene.intensity.reshape(-1, 2)[view], expected)
        # Enlarging blurs, which takes from the variance but not from the mean; the border weighs a little more.
        assert abs(batch.scene.intensity.reshape(-1, 2)[view, 0].item() - part.mean() / 255) < 0.02


class CoordinatePictures:
    """Stands for a reader of shards: red says how far right a pixel is, green how far down, blue which frame."""

    def image(self, row: int) -> np.ndarray:
        """[S, S, 3] uint8: 7 grey levels a pixel."""
        down, right = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE] * 7
        return np.stack([right, down, np.full_like(right, row)], axis=-1).astype(np.uint8)


def assert_pixels_are_where_cameras_say(parts: np.ndarray, intrinsics: Tensor, plain: Tensor) -> None:
    """Pictures [n, S, S, 3] of crops of `CoordinatePictures`, their intrinsics [n, 3, 3] and those of the whole."""
    middle = slice(4, IMAGE_SIZE - 4)  # enlarging repeats the outermost pixels
    places = np.arange(IMAGE_SIZE) + 0.5
    for part, matrix, whole in zip(parts, intrinsics.numpy(), plain.numpy(), strict=True):
        for channel, axis in ((0, 0), (1, 1)):
            directions = (places - matrix[axis, 2]) / matrix[axis, axis]
            expected = (directions * whole[axis, axis] + whole[axis, 2] - 0.5) * 7  # at the centre of the raw pixel
            found = part[..., channel].mean(axis=channel)
            assert np.abs(found - expected)[middle].max() < 1.1  # rounding to grey levels; a pixel is 7


def test_crops_of_pictures_show_what_their_cameras_say(pictures: Path) -> None:
    index, latents = batches(pictures).index, LatentCache(pictures / "latents")
    made = TrainBatches(index, CoordinatePictures(), latents, seed=SEED, num_views=NUM_VIEWS)  # type: ignore[arg-type]
    batch, choice = made.load(range(20)), made.order.choose(np.arange(20))
    rows = choice.rows.reshape(-1)
    parts = batch.frames.flatten(0, 1).permute(0, 2, 3, 1).numpy()
    assert (parts[..., 2] == rows[:, None, None]).all()
    intrinsics = batch.scene.cameras.intrinsics.reshape(-1, 3, 3)
    plain = index.cameras(rows).intrinsics
    assert_pixels_are_where_cameras_say(parts, intrinsics, plain)
    scales = (intrinsics[:, 0, 0] / plain[:, 0, 0]).reshape(20, NUM_VIEWS)
    assert len({tuple(row) for row in scales.tolist()}) > 15  # drawn anew for each position
    for part, (mean, variance) in zip(parts, batch.scene.intensity.reshape(-1, 2).tolist(), strict=True):
        assert (mean, variance) == pytest.approx(intensity(part), rel=1e-5)


class PicturesAsLatents:
    """Stands for a base model: a picture's moments are the picture, four times smaller by leaving pixels out."""

    vae = torch.nn.Module()
    vae.device = CPU  # type: ignore[assignment]
    encode_pictures = BaseModel.encode_pictures

    def encode_moments(self, images: Tensor) -> Tensor:
        return images[..., ::4, ::4].repeat(1, 3, 1, 1)[:, :8]


def test_cached_crops_are_those_of_their_cameras(cropped: Path, tmp_path: Path) -> None:
    index = batches(cropped).index
    config = LatentsConfig(num_crops=4, smallest_crop=0.5, batch_size=2)
    writer = LatentsWriter(PicturesAsLatents(), index, CoordinatePictures(), tmp_path, config)  # type: ignore[arg-type]
    for unit in plan_units(index, config):
        if unit.kind == "moments":
            writer.write(unit)
    moments = np.load(tmp_path / "moments-000000.npy").reshape(len(index), 4, 8, 8, 8)
    facts = np.load(tmp_path / "crops-000000.npy").reshape(len(index), 4, 5)
    assert (facts[:, 0, :3] == [0, 0, IMAGE_SIZE]).all()
    assert len({tuple(box) for box in facts[:, 1:, :3].reshape(-1, 3).tolist()}) > 35
    for row in range(len(index)):
        for (top, left, side, *_), moment in zip(facts[row].tolist(), moments[row], strict=True):
            raw = np.arange(0, IMAGE_SIZE, 4) + 0.5
            for channel, corner in ((0, left), (1, top)):
                expected = (corner + raw * side / IMAGE_SIZE - 0.5) * 7 / 255
                found = moment[channel].mean(axis=channel)
                assert np.abs(found - expected)[1:-1].max() < 1.1 / 255
            assert np.abs(moment[2] * 255 - row).max() < 0.6


def test_where_chunks_end_changes_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("moments", "text", "prior"):
        monkeypatch.setitem(latents_module.CHUNKED, name, 2)
    for name in ("CHUNK_ROWS", "CHUNK_CAPTIONS", "CHUNK_PRIOR"):
        monkeypatch.setattr(writing, name, 2)
    write(tmp_path)
    assert len(list((tmp_path / "latents").glob("moments-*.npy"))) == 8
    small = LatentCache(tmp_path / "latents")
    monkeypatch.undo()
    large = LatentCache(root / "latents")
    rows, zeros = np.arange(15), np.zeros(15, np.int64)
    torch.testing.assert_close(small.moments(rows, zeros), large.moments(rows, zeros), rtol=HALF, atol=HALF)
    numbers = np.arange(large.num_captions)
    torch.testing.assert_close(small.text(numbers), large.text(numbers), rtol=HALF, atol=HALF)
    for one, other in zip(small.prior(np.arange(3)), large.prior(np.arange(3)), strict=True):
        torch.testing.assert_close(one, other, rtol=HALF, atol=HALF)
    assert all(np.array_equal(a, b) for a, b in zip(small.crops(rows, zeros), large.crops(rows, zeros), strict=True))
    assert len({sample.numpy().tobytes() for sample in large.prior(np.arange(3))[0]}) == 3
    empty = large.text([0])
    assert not any(torch.equal(text[None], empty) for text in large.prior(np.arange(3))[1])


def test_a_loader_tells_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    made = batches(write(tmp_path))
    path = tmp_path / "latents" / "moments-000000.npy"
    path.write_bytes(path.read_bytes()[:-2])
    for num_workers in (0, 1):
        with pytest.raises(UserError, match=r"^\S+moments-000000.npy: \d+ bytes, \d+ were written; restore it"):
            next(load_batches(made, [range(2)], num_workers=num_workers))


def test_pictures_are_encoded_where_they_are_trained_on(pictures: Path) -> None:
    made, base = batches(pictures), load_base(pictures / "base").frozen()
    batch = made.load(range(2))
    assert (batch.frames.dtype, batch.frames.shape) == (torch.uint8, (2, NUM_VIEWS, 3, IMAGE_SIZE, IMAGE_SIZE))
    with torch.no_grad():
        moments = base.encode_moments(batch.frames.flatten(0, 1).float() / 255).unflatten(0, (2, NUM_VIEWS))
    noiseless = made.latents.latents(moments, torch.zeros(2, NUM_VIEWS, *made.latents.latent_shape))
    spread = (made.views(batch, CPU, base).latents - noiseless) / torch.exp(0.5 * moments.chunk(2, dim=2)[1])
    assert abs(spread.std().item() / made.latents.scaling_factor - 1) < 0.1


def test_prior_samples_come_in_the_same_batch(root: Path) -> None:
    made = batches(root)
    batch = made.load(range(40))
    cached, text = made.latents.prior(np.arange(made.latents.num_prior))
    drawn = [next(i for i, image in enumerate(cached) if torch.equal(image, found)) for found in batch.prior]
    assert set(drawn) == set(range(made.latents.num_prior))
    assert torch.equal(text[drawn], batch.prior_text)
    prior = made.prior(batch, CPU)
    assert prior.positions == batch.positions
    assert torch.equal(prior.latents, cached[drawn].float())


def test_too_many_views_are_refused(root: Path) -> None:
    with pytest.raises(UserError, match=f"has {NUM_FRAMES} frames, num_views is {NUM_FRAMES + 1}"):
        batches(root, num_views=NUM_FRAMES + 1)


def test_an_empty_split_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match="no sequence to choose views from"):
        batches(root, split="test")


def test_nothing_is_unpickled_or_run(tmp_path: Path) -> None:
    write(tmp_path)
    folder, sprung = tmp_path / "latents", tmp_path / "sprung"
    path = folder / "moments-000000.npy"
    np.save(path, np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    manifest = json.loads((folder / "latents.json").read_bytes())
    del manifest["sha256"]
    for file in manifest["files"]:
        if file[0] == path.name:
            file[1:] = [path.stat().st_size, digest_file(path)]
    write_manifest(folder / "latents.json", manifest)
    with pytest.raises(UserError, match=r"moments-000000.npy: damaged .*Python objects in dtype"):
        LatentCache(folder)
    for name in (f"pipe:touch {sprung}", "../base/x.npy", "/etc/hosts"):
        manifest["files"][0][0] = name
        write_manifest(folder / "latents.json", manifest)
        with pytest.raises(UserError, match="is none that this project writes"):
            LatentCache(folder)
    assert not sprung.exists()


def test_damaged_latents_are_found(root: Path, tmp_path: Path) -> None:
    write(tmp_path)
    cache = LatentCache(tmp_path / "latents")
    cache.verify()
    path = tmp_path / "latents" / "moments-000000.npy"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"moments-000000.npy is damaged; delete the folder"):
        LatentCache(tmp_path / "latents").verify()
    path.write_bytes(data[:-2])
    with pytest.raises(UserError, match=r"moments-000000.npy: \d+ bytes, \d+ were written"):
        batches(tmp_path).load([0])
