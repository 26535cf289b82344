"""What BLIP-2 says of pictures, which frames it is shown, and what is made of its words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from infra.errors import UserError
from pipelines.chain.checks import check_settings
from pipelines.settings.presets import tiny
from pipelines.spine.runtime import RuntimeConfig
from preprocessing.captions.blip2 import Captioner
from preprocessing.captions.describing import described_rows
from preprocessing.captions.files import distinct_captions, read_sequence_captions, write_sequence_captions
from preprocessing.config import CaptionsConfig
from preprocessing.shards.reading import SequenceRecord
from tests.support.tiny_blip import NUM_QUERY_TOKENS, WORDS, write_tiny_blip

LENGTH = 12


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture
def other(source: Path, tmp_path: Path) -> Path:
    """A copy of the model to spoil."""
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture(scope="module")
def captioner(source: Path) -> Captioner:
    return Captioner.from_pretrained(str(source), max_new_tokens=LENGTH)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)
    return list(coarse.repeat(12, axis=1).repeat(12, axis=2))


def likeliest_words(captioner: Captioner, image: np.ndarray) -> str:
    """The caption by the plain rule: after the picture's tokens and the start, always the likeliest token."""
    model, tokenizer = captioner.model, captioner.processor.tokenizer
    pixels = captioner.processor(images=image, return_tensors="pt")["pixel_values"]
    start = [tokenizer.convert_tokens_to_ids("<image>")] * NUM_QUERY_TOKENS + [tokenizer.bos_token_id]
    said: list[int] = []
    while len(said) < LENGTH:
        with torch.no_grad():
            logits = model(pixel_values=pixels, input_ids=torch.tensor([start + said])).logits
        said.append(int(logits[0, -1].argmax()))
        if said[-1] == tokenizer.eos_token_id:
            break
    return " ".join(word for word in tokenizer.convert_ids_to_tokens(said) if word in WORDS)


def test_captions_are_the_likeliest_words(captioner: Captioner, images: list[np.ndarray]) -> None:
    captions = captioner.captions(images)
    assert captions == [likeliest_words(captioner, image) for image in images]
    assert len(set(captions)) > 3  # the pictures matter
    assert len({len(caption.split()) for caption in captions}) > 1  # and so does the end


def test_a_caption_does_not_depend_on_its_batch(captioner: Captioner, images: list[np.ndarray]) -> None:
    together = captioner.captions(images)
    assert [captioner.captions([image])[0] for image in images] == together
    assert captioner.captions(images[::-1]) == together[::-1]
    assert captioner.captions(images[2:5]) == together[2:5]


def test_the_longest_caption_is_set(source: Path, images: list[np.ndarray]) -> None:
    captions = Captioner.from_pretrained(str(source), max_new_tokens=2).captions(images)
    assert max(len(caption.split()) for caption in captions) == 2


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"cannot read BLIP-2 model {tmp_path / 'none'} \(no such folder\); name a folder"
    ):
        Captioner.from_pretrained(str(tmp_path / "none"), max_new_tokens=LENGTH)


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "clip"}, "its model_type is 'clip', not 'blip-2'"),
        ({"image_token_index": None}, "has no image_token_index"),
    ],
)
def test_other_models_are_refused_before_any_work(other: Path, values: dict[str, object], message: str) -> None:
    change_config(other, **values)
    with pytest.raises(UserError, match=message):
        Captioner.from_pretrained(str(other), max_new_tokens=LENGTH)
    config = replace(tiny(), captions=CaptionsConfig(source=str(other)))
    with pytest.raises(UserError, match=message):
        check_settings(config, RuntimeConfig(root=str(other)), stages={"captions"})


def test_incomplete_weights_are_refused(other: Path) -> None:
    path = other / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    del weights["language_projection.weight"]
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"its weights lack language_projection\.weight"):
        Captioner.from_pretrained(str(other), max_new_tokens=LENGTH)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot read BLIP-2 model"):
        Captioner.from_pretrained(str(other), max_new_tokens=LENGTH)


def test_pickled_weights_are_not_read(other: Path) -> None:
    path = other / "model.safetensors"
    torch.save(safetensors.torch.load_file(path), other / "pytorch_model.bin")
    path.unlink()
    with pytest.raises(UserError, match="safetensors"):
        Captioner.from_pretrained(str(other), max_new_tokens=LENGTH)


def sequence(num_frames: int) -> SequenceRecord:
    return SequenceRecord("apple", "a", "train", ("x",), np.zeros((2, 3)), range(100, 100 + num_frames))


def test_described_frames_are_spread_over_the_turn() -> None:
    assert described_rows(sequence(50), 5) == [105, 115, 125, 135, 145]
    assert described_rows(sequence(7), 5) == [100, 102, 103, 104, 106]
    assert described_rows(sequence(3), 5) == [100, 101, 102]
    assert described_rows(sequence(1), 1) == [100]


def test_equal_captions_count_once_and_none_is_the_category() -> None:
    assert distinct_captions(["a  red\n apple ", "an apple", "a red apple", " "], "apple") == (
        "a red apple",
        "an apple",
    )
    assert distinct_captions(["", " "], "toy_truck") == ("a photo of a toy truck",)


def test_the_file_of_captions_is_checked(tmp_path: Path) -> None:
    captions = {"apple/a": ("ein Äpfelchen", "an apple"), "hydrant/a": ("red",)}
    write_sequence_captions(tmp_path, captions)
    first = (tmp_path / "captions.json").read_bytes()
    write_sequence_captions(tmp_path, dict(reversed(captions.items())))
    assert (tmp_path / "captions.json").read_bytes() == first
    assert read_sequence_captions(tmp_path) == captions
    for text in ("[]", '{"apple/a": []}', '{"apple/a": [1]}', first.decode()[:-5]):
        (tmp_path / "captions.json").write_text(text)
        with pytest.raises(UserError, match=r"captions\.json: .*run `viewdiff captions` again"):
            read_sequence_captions(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        read_sequence_captions(tmp_path / "none")
