"""model/base/checks.py: what does not fit is refused in one line that says what and why, before any weight is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from infra.errors import UserError
from model.base.checks import SUPPORTED
from model.base.stable_diffusion import check_base, load_base, save_base
from model.base.stand_in import build_tiny_base
from pipelines.cli import main
from tests.support.training_inputs import BASE, IMAGE_SIZE

WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("base") / "original"
    save_base(build_tiny_base(BASE, image_size=IMAGE_SIZE, words=["red", "apple"], seed=0), folder)
    return folder


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "M"))


def setting(file: str, **values: Any) -> Change:
    """Change settings in one of the folder's JSON files; `...` removes one."""

    def change(folder: Path) -> None:
        path = folder / file
        config = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))

    return change


def tensors(part: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Change:
    """Replace a part's stored tensors by what `change` makes of them."""

    def apply(folder: Path) -> None:
        path = folder / part / f"{WEIGHTS[part]}.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return apply


def remade_unet(**values: Any) -> Change:
    """A U-Net with other settings, whose weights fit them."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "unet" / "config.json").read_text())
        UNet2DConditionModel.from_config({**config, **values}).save_pretrained(folder / "unet")

    return change


def all_of(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for each in changes:
            each(folder)

    return change


def without(*names: str) -> Change:
    """Remove files or folders."""

    def change(folder: Path) -> None:
        for name in names:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    return change


UNET, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
TEXT_WEIGHTS = "text_encoder/model.safetensors"
OTHER_MODELS: dict[str, tuple[Change, str]] = {
    "SDXL": (
        all_of(
            setting("model_index.json", _class_name="StableDiffusionXLPipeline", text_encoder_2=["transformers", "X"]),
            setting(UNET, addition_embed_type="text_time"),
        ),
        rf" is a StableDiffusionXLPipeline \(addition_embed_type text_time\); {SUPPORTED}",
    ),
    "SDXL's U-Net": (setting(UNET, addition_embed_type="text_time"), r"no plain .* \(addition_embed_type text_time\)"),
    "Flux": (
        all_of(
            setting("model_index.json", _class_name="FluxPipeline"),
            lambda folder: (folder / "unet").rename(folder / "transformer") and None,
        ),
        r" is a FluxPipeline \(it has a transformer and no unet\); Stable Diffusion 1.x",
    ),
    "a transformer alone": (
        all_of(without("model_index.json"), lambda folder: (folder / "unet").rename(folder / "transformer") and None),
        "it has a transformer and no unet",
    ),
    "Kandinsky": (setting("model_index.json", _class_name="KandinskyV22Pipeline"), "is a KandinskyV22Pipeline; Stable"),
    "a list of names": (setting("model_index.json", _class_name=["my_file", "MyPipeline"]), "MyPipeline"),
    "LCM": (setting(UNET, time_cond_proj_dim=256), r"\(time_cond_proj_dim 256\)"),
    "classes": (setting(UNET, class_embed_type="timestep"), r"\(class_embed_type timestep\)"),
    "motion": (setting(UNET, _class_name="UNet3DConditionModel"), r"\(unet UNet3DConditionModel\)"),
    "blocks": (
        setting(UNET, down_block_types=["SimpleCrossAttnDownBlock2D"] * 2),
        r"\(down_block_types SimpleCrossAttnDownBlock2D\)",
    ),
    "no list of blocks": (setting(UNET, down_block_types=3), r"\(down_block_types 3\)"),
    "a tiny autoencoder": (setting("vae/config.json", _class_name="AutoencoderTiny"), r"\(vae AutoencoderTiny\)"),
    "T5": (setting("text_encoder/config.json", model_type="t5"), r"\(text_encoder t5\)"),
    "ControlNet": (
        setting("model_index.json", controlnet=["diffusers", "ControlNetModel"]),
        r"parts that a Stable Diffusion has not \(controlnet\)",
    ),
}
UNFIT: dict[str, tuple[Change, str]] = {
    "inpainting": (remade_unet(in_channels=9), "its unet takes 9 channels and gives 4, its vae's latents have 4"),
    "depth": (remade_unet(in_channels=5), "takes 5 channels"),
    "learned variance": (remade_unet(out_channels=8), "gives 8"),
    "texts": (remade_unet(cross_attention_dim=48), r"texts of 48 channels .*, its text_encoder makes 32 \(hidden_size"),
    "texts per level": (setting(UNET, cross_attention_dim=[32, 48]), r"texts of \(?\[?32, 48"),
    "latents' side": (setting(UNET, sample_size=None), "sample_size is None"),
    "scale": (setting("vae/config.json", scaling_factor=0.0), "scaling_factor is 0.0, must be a positive number"),
    "shift": (setting("vae/config.json", shift_factor="x"), "shift_factor is x, must be a number or absent"),
    "latents' statistics": (setting("vae/config.json", latents_mean=[0.0] * 4), "latents_mean or latents_std"),
    "clean image": (setting(SCHEDULER, prediction_type="sample"), "prediction_type is 'sample', must be epsilon or v_"),
    "flow": (setting(SCHEDULER, prediction_type="flow_prediction"), "prediction_type is 'flow_prediction'"),
    "no steps": (setting(SCHEDULER, num_train_timesteps=0), r"has 0 steps \(num_train_timesteps\)"),
    "betas for other steps": (setting(SCHEDULER, trained_betas=[0.1, 0.2]), "1000 steps .* and 2 betas"),
    "no betas": (
        setting(SCHEDULER, _class_name="FlowMatchEulerDiscreteScheduler", beta_schedule=...),
        "its scheduler, a FlowMatchEulerDiscreteScheduler, has no beta_schedule",
    ),
    "betas out of range": (setting(SCHEDULER, beta_start=-0.1, beta_schedule="linear"), r"betas must lie in \(0, 1\]"),
    "unknown betas": (setting(SCHEDULER, beta_schedule="cubic"), "cannot make its scheduler .*cubic"),
    "betas that UniPC has not": (setting(SCHEDULER, beta_schedule="sigmoid"), "cannot make its scheduler .*sigmoid"),
    "nor these": (setting(SCHEDULER, beta_schedule="laplace"), "cannot make its scheduler .*laplace"),
    "long texts": (
        setting("tokenizer/tokenizer_config.json", model_max_length=77),
        "tokenizer makes up to 77 tokens, its text_encoder takes 8",
    ),
    "no length": (setting("tokenizer/tokenizer_config.json", model_max_length=...), "says no model_max_length"),
    "words": (
        setting("text_encoder/config.json", vocab_size=50),
        r"its tokenizer knows \d+ tokens, its text_encoder 50",
    ),
    "activation": (setting("text_encoder/config.json", hidden_act="zigzag"), "cannot make its text_encoder .*zigzag"),
    "no text encoder": (without("text_encoder"), "text_encoder/config.json is missing; give a whole diffusers folder"),
    "no tokens": (without("tokenizer/tokenizer.json"), "vocab.json or merges.txt is missing"),
    "no scheduler": (without("scheduler"), "scheduler/scheduler_config.json is missing"),
    "cut JSON": (lambda folder: void((folder / UNET).write_text("{")), "cannot read unet/config.json"),
    "a JSON list": (lambda folder: void((folder / UNET).write_text("[]")), "unet/config.json holds no JSON object"),
}
WRONG_WEIGHTS: dict[str, tuple[Change, str]] = {
    "one lacking": (
        tensors("unet", lambda state: {key: state[key] for key in state if key != "conv_out.weight"}),
        r": its unet lacks conv_out.weight \(1 of \d+\)$",
    ),
    "a foreign prefix": (
        tensors("text_encoder", lambda state: {f"module.{key}": value for key, value in state.items()}),
        r"its text_encoder lacks embeddings.token_embedding.weight and 35 more \(36 of 36\); it has module\.",
    ),
    "one too many": (
        tensors("unet", lambda state: state | {"lora.down": torch.zeros(2)}),
        r"its unet also has lora.down \(1 of \d+\)",
    ),
    "integers": (
        tensors("vae", lambda state: state | {"quant_conv.weight": state["quant_conv.weight"].to(torch.int8)}),
        r"its vae has numbers of type I8 in quant_conv.weight \(1 of \d+\)",
    ),
    "another shape": (
        tensors("unet", lambda state: state | {"conv_in.bias": torch.zeros(7)}),
        r"its unet has conv_in.bias of shape \(7,\), its config makes it \(16,\)",
    ),
    "cut short": (
        lambda folder: void((folder / TEXT_WEIGHTS).write_bytes((folder / TEXT_WEIGHTS).read_bytes()[:-100])),
        "cannot read text_encoder/model.safetensors .*download it again",
    ),
    "Git LFS": (
        lambda folder: void((folder / TEXT_WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid a\n")),
        "a pointer of Git LFS, not the file.*git lfs pull",
    ),
    "none": (
        without(TEXT_WEIGHTS),
        "text_encoder/model.safetensors is missing, there is config.json; download it again",
    ),
    "pickled": (
        lambda folder: void((folder / TEXT_WEIGHTS).rename(folder / "text_encoder" / "pytorch_model.bin")),
        r"its text_encoder has its weights in pytorch_model.bin alone, .*save_pretrained\(FOLDER\)",
    ),
}


def void(_: object) -> None:
    """A change's result, which is none."""


@pytest.mark.parametrize(("change", "message"), (cases := OTHER_MODELS | UNFIT | WRONG_WEIGHTS).values(), ids=cases)
def test_what_does_not_fit_is_refused_in_a_line(change: Change, message: str, model: Path) -> None:
    change(model)
    for read in (check_base, load_base):
        with pytest.raises(ValueError, match=message) as caught:
            read(model)
        assert str(caught.value).startswith(f"base model {model}")
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_must_be_finite(value: float, model: Path) -> None:
    def spoil(state: dict[str, Tensor]) -> dict[str, Tensor]:
        state["conv_in.weight"][0, 0, 0, 0] = value
        state["conv_out.bias"][1] = value
        return state

    tensors("unet", spoil)(model)
    check_base(model)  # looks at no values
    with pytest.raises(ValueError, match=r"its unet has NaN or infinity in conv_in.weight and 1 more \(2 of \d+\)"):
        load_base(model)


def test_what_is_known_not_to_matter_is_allowed(model: Path) -> None:
    extra = {"text_model.embeddings.position_ids": torch.arange(8)[None], "text_projection.weight": torch.zeros(4, 32)}
    tensors("text_encoder", lambda state: {f"text_model.{key}": state[key] for key in state} | extra)(model)
    parts = ["safety_checker", "StableDiffusionSafetyChecker"]
    setting("model_index.json", safety_checker=parts, feature_extractor=["transformers", "CLIPImageProcessor"])(model)
    check_base(model)
    without("model_index.json")(model)
    check_base(model)


@pytest.mark.parametrize("command", ["base", "latents", "train --dry-run", "run --dry-run"])
def test_every_command_refuses_before_any_work(command: str, model: Path, tmp_path: Path) -> None:
    OTHER_MODELS["SDXL"][0](model)
    name, *options = command.split()
    with pytest.raises(UserError, match=rf"M {OTHER_MODELS['SDXL'][1].strip()}; name another with --base.source"):
        main.dispatch([name, "--root", str(tmp_path / "root"), "--base.source", str(model), *options])
    assert not (tmp_path / "root").exists()
