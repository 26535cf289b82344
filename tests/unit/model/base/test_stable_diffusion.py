"""model/base/stable_diffusion.py: Stable Diffusions as people have them, all read to the same float32 parts."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub.constants
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel

from model.base import folder as base_folder
from model.base.folder import DiffusersFolder, fetch_weights, open_folder
from model.base.stable_diffusion import BaseModel, check_base, load_base, save_base
from tests.support.narrow_models import MAX_TOKENS, MODELS, WORDS, save_narrow_model

STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Thousands of small tensors are read and compared: on a busy machine, threads wait for each other at each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=MODELS)
def narrow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, save_narrow_model(tmp_path_factory.mktemp("narrow") / "M", request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_narrow_model(tmp_path_factory.mktemp("narrow") / "M", "2.1-base")


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, dict[str, Tensor]]:
    return states(load_base(folder))


def states(base: BaseModel) -> dict[str, dict[str, Tensor]]:
    return {part: getattr(base, part).state_dict() for part in STEMS}


def stored(folder: Path, part: str) -> dict[str, Tensor]:
    return dict(load_file(folder / part / f"{STEMS[part]}.safetensors"))


def small_copy(folder: Path, copy: Path, dtype: torch.dtype, variant: str = "") -> Path:
    """The folder with weights of another type, in files of a variant."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    for part, stem in STEMS.items():
        state = {
            key: value.to(dtype) if value.is_floating_point() else value for key, value in stored(folder, part).items()
        }
        save_file(state, copy / part / f"{stem}{variant}.safetensors", metadata={"format": "pt"})
    return copy


def assert_equal(found: Mapping[str, Mapping[str, Tensor]], expected: Mapping[str, Mapping[str, Tensor]]) -> None:
    for part, state in expected.items():
        assert found[part].keys() == state.keys()
        for key, value in state.items():
            assert found[part][key].dtype == torch.float32, key
            assert torch.equal(found[part][key], value), key


def test_published_folders_are_read_whole(narrow: tuple[str, Path]) -> None:
    kind, folder = narrow
    check_base(folder)
    base = load_base(folder)
    for part, state in states(base).items():
        file = stored(folder, part)
        file.pop("text_model.embeddings.position_ids", None)
        assert len(file) == len(state)
        for key, value in state.items():
            old = key.replace(".to_q.", ".query.").replace(".to_k.", ".key.").replace(".to_v.", ".value.")
            old = {"text_encoder": f"text_model.{key}", "vae": old.replace(".to_out.0.", ".proj_attn."), "unet": key}[
                part
            ]
            assert torch.equal(value, file[old]), key
    assert base.downsampling == 8
    assert base.vae.config.scaling_factor == 0.18215  # of Stable Diffusion, which its old configs do not say
    assert base.scheduler.config.num_train_timesteps == 1000
    assert base.scheduler.betas[[0, -1]].tolist() == pytest.approx([0.00085, 0.012], rel=1e-6)
    assert base.scheduler.config.prediction_type == {"2.1": "v_prediction"}.get(kind, "epsilon")
    assert base.unet.config.sample_size == {"2.1": 96}.get(kind, 64)


def test_texts_are_padded_as_the_folder_says(narrow: tuple[str, Path]) -> None:
    kind, folder = narrow
    tokenizer = load_base(folder).tokenizer
    tokens = tokenizer("a photo of a teddybear", padding="max_length", max_length=MAX_TOKENS).input_ids
    words = [tokenizer.vocab[f"{word}</w>"] for word in ("a", "photo", "of", "a", "teddybear")]
    end = len(tokenizer) - 1
    padding = end if kind == "1.5" else 0  # "!" in 2.x, whatever tokenizer_config.json says
    assert tokens == [end - 1, *words, end, *[padding] * (MAX_TOKENS - 7)]
    assert all(len(tokenizer.tokenize(word)) == 1 for word in WORDS)


@pytest.mark.parametrize(
    ("dtype", "variant"),
    [(torch.float16, ""), (torch.bfloat16, ""), (torch.float16, ".fp16"), (torch.bfloat16, ".bf16")],
)
def test_everything_is_float32_whatever_was_stored(
    dtype: torch.dtype, variant: str, folder: Path, expected: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    half = small_copy(folder, tmp_path / "half", dtype, variant)
    check_base(half)
    base = load_base(half)
    rounded = {part: {key: value.to(dtype).float() for key, value in state.items()} for part, state in expected.items()}
    assert_equal(states(base), rounded)
    with torch.no_grad():
        text = base.encode_text(["a red apple"])
        assert base.unet(torch.zeros(1, 4, 8, 8), 5, text).sample.dtype == torch.float32


def test_a_base_stage_of_half_precision_is_written_in_float32(folder: Path, tmp_path: Path) -> None:
    base = load_base(small_copy(folder, tmp_path / "half", torch.float16))
    save_base(base, tmp_path / "written")
    for part, stem in STEMS.items():
        state = load_file(tmp_path / "written" / part / f"{stem}.safetensors")
        assert {value.dtype for value in state.values()} == {torch.float32}
    assert_equal(states(load_base(tmp_path / "written")), states(base))


def test_plain_files_go_before_those_of_a_variant(
    folder: Path, expected: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    both = small_copy(folder, tmp_path / "both", torch.float16, ".fp16")
    for part, stem in STEMS.items():
        shutil.copy(folder / part / f"{stem}.safetensors", both / part)
    assert_equal(states(load_base(both)), expected)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards(variant: str | None, folder: Path, expected: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    shutil.copytree(folder, sharded, ignore=shutil.ignore_patterns("*.safetensors"))
    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    for part, kind in kinds.items():
        model = kind.from_pretrained(folder / part)
        model.save_pretrained(sharded / part, max_shard_size="1MB", variant=variant)
        assert len(list((sharded / part).glob("*-of-*.safetensors"))) > 1
    check_base(sharded)
    assert_equal(states(load_base(sharded)), expected)
    shard = sorted((sharded / "unet").glob("*-of-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=rf"unet/{shard.name} is missing, which unet/.*index.*json names; download"):
        check_base(sharded)


def test_an_index_may_not_lead_out_of_its_folder(folder: Path, tmp_path: Path) -> None:
    copy = small_copy(folder, tmp_path / "copy", torch.float16)
    (copy / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": {"a": "../vae/b"}}')
    with pytest.raises(ValueError, match=r"index.json names '../vae/b', which is no file beside it"):
        check_base(copy)


def test_a_file_or_nothing_instead_of_a_folder(folder: Path, tmp_path: Path) -> None:
    single = tmp_path / "v1-5-pruned.safetensors"
    single.touch()
    for read in (check_base, load_base):
        with pytest.raises(ValueError, match=r"v1-5-pruned.safetensors is a single file; .*from_single_file\(FILE\)"):
            read(single)
        for nothing in (tmp_path / "nothing", "./nothing", "a/b/c"):
            with pytest.raises(ValueError, match=r"(nothing|a/b/c): there is no such folder; give a diff"):
                read(nothing)


def cache(folder: Path, root: Path, *, ref: str = "main") -> Path:
    """A cache of the hub that holds the folder as `owner/narrow`."""
    repository = root / "models--owner--narrow"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / ref).write_text(COMMIT)
    return root


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("revision", [None, "v2", COMMIT])
def test_a_hub_id_is_read_from_the_cache(
    revision: str | None, offline: Path, folder: Path, expected: dict[str, dict[str, Tensor]]
) -> None:
    cache(folder, offline, ref=revision or "main")
    assert_equal(states(load_base("owner/narrow", revision=revision)), expected)


def test_a_variant_in_the_cache(offline: Path, folder: Path, tmp_path: Path) -> None:
    cache(small_copy(folder, tmp_path / "half", torch.float16, ".fp16"), offline)
    assert load_base("owner/narrow").unet.dtype == torch.float32


def test_what_the_cache_lacks_is_said(offline: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^base model owner/other: it is not whole in the hub's cache .* \(.*\); check its name"
    ):
        load_base("owner/other")
    configs = tmp_path / "configs"
    shutil.copytree(folder, configs, ignore=shutil.ignore_patterns("*.safetensors"))
    cache(configs, offline)
    with pytest.raises(
        ValueError, match=r"^base model owner/narrow: it is not whole in the hub's cache .* \(.*\); check its name"
    ):
        load_base("owner/narrow")


def answer(*files: str, otherwise: Exception) -> Callable[..., None]:
    """A hub, or a cache, of these files."""

    def download(name: str, file: str = "", **options: object) -> None:
        if file not in files:
            raise otherwise

    return download


OUTAGE = LocalEntryNotFoundError("no answer, and not in the cache")
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FULL, r"the hub's cache .* cannot be written \(.*No space left.*\); make space there"),
        (GatedRepoError("401", response=Mock()), r"asks? who uses it \(401\); accept its licence"),
        (RepositoryNotFoundError("404", response=Mock()), r"no such model on the hub \(404\); check its name"),
        (RevisionNotFoundError("404", response=Mock()), r"does not have its revision \(404\); check the revision"),
        (OUTAGE, r"the hub does not give it \(no answer.*\); check its name and the network; HF_HUB_OFFLINE=1"),
    ],
)
def test_each_cause_has_its_remedy(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_folder, "hf_hub_download", answer(otherwise=error))
    monkeypatch.setattr(base_folder, "snapshot_download", answer(otherwise=error))
    for read in (
        lambda: open_folder("owner/narrow"),
        lambda: fetch_weights(DiffusersFolder(Path("commit"), "owner/narrow", from_hub=True)),
    ):
        with pytest.raises(ValueError, match=f"^base model owner/narrow: .*{message}"):
            read()


def test_an_index_that_is_wrong_is_not_the_hubs_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / f"{STEMS['unet']}.safetensors.index.json").write_text("{}")
    monkeypatch.setattr(
        base_folder, "hf_hub_download", answer(f"unet/{STEMS['unet']}.safetensors.index.json", otherwise=OUTAGE)
    )
    with pytest.raises(ValueError, match=r"owner/narrow: unet/.*index.json names no files; download it again$"):
        fetch_weights(DiffusersFolder(tmp_path, "owner/narrow", from_hub=True))


def test_an_outage_does_not_choose_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a cache that holds a variant alone nobody knows whether the hub has plain files."""
    model = DiffusersFolder(Path("commit"), "owner/narrow", from_hub=True)
    halves, plain = ([f"{part}/{stem}{suffix}.safetensors" for part, stem in STEMS.items()] for suffix in (".fp16", ""))
    monkeypatch.setattr(base_folder, "hf_hub_download", answer(*halves, otherwise=OUTAGE))
    with pytest.raises(ValueError, match="the hub does not give it"):
        fetch_weights(model)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    fetch_weights(model)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(base_folder, "hf_hub_download", answer(*plain, otherwise=OUTAGE))
    fetch_weights(model)  # one file or shards, they are the plain weights
    monkeypatch.setattr(base_folder, "hf_hub_download", answer(*halves, otherwise=EntryNotFoundError("404")))
    fetch_weights(model)
