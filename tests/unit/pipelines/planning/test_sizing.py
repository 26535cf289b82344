"""`viewdiff plan`: what is chosen for given GPUs, and what it says. Activations are given, not counted."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from model.cost.memory import PassMemory
from pipelines.cli.arguments import given_options
from pipelines.commands import plan as sizing_text
from pipelines.planning import memory as memory_module
from pipelines.planning import step_time
from pipelines.planning.gpus import choose_gpu, recognise_gpu
from pipelines.planning.memory import GB, training_memory
from pipelines.planning.sizing import MICRO_BATCH_SIZE, ZERO_STAGE, remedies, size_training
from pipelines.planning.step_time import Link, ring_link, ring_seconds
from pipelines.settings.commands import SizingConfig
from pipelines.settings.presets import tiny
from pipelines.settings.run import RunConfig

PARAMETERS = 1_000_000_000  # of which all are trained, or a tenth
PER_SAMPLE, COPIES = 1_000_000_000, 200_000_000


@pytest.fixture(autouse=True)
def _given_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    def counts(config: RunConfig) -> dict[str, int]:
        share = 10 if config.train.trained == "adapter" else 1
        return {"total": PARAMETERS, "trained": PARAMETERS // share}

    def passes(config: RunConfig, num_samples: int, *, checkpointing: bool | None = None) -> PassMemory:
        on = config.train.model.gradient_checkpointing if checkpointing is None else checkpointing
        kept = num_samples * PER_SAMPLE // (4 if on else 1) + COPIES
        return PassMemory(kept=kept, weight_copies=COPIES, peak=kept + 1, peak_with_gradients=kept + 2)

    monkeypatch.setattr(memory_module, "count_parameters", counts)
    monkeypatch.setattr(step_time, "count_parameters", counts)
    monkeypatch.setattr(memory_module, "passes_memory", passes)
    monkeypatch.setattr(sizing_text, "passes_memory", passes)


def config(**settings: object) -> RunConfig:
    base = tiny()
    return replace(base, train=replace(base.train, **settings))  # type: ignore[arg-type]


def with_stage(stage: int, **settings: object) -> RunConfig:
    plain = config(**settings)
    engine = replace(plain.train.engine, zero_stage=stage)
    return replace(plain, train=replace(plain.train, engine=engine))


def test_memory_by_zero_stage() -> None:
    one, two = (training_memory(with_stage(stage, micro_batch_size=1), num_workers=4).backward for stage in (1, 2))
    assert one["weights"] == two["weights"] == 4 * PARAMETERS
    assert (
        one["optimizer: moments and its own weights"] == two["optimizer: moments and its own weights"] == 3 * PARAMETERS
    )
    assert one["gradients of earlier passes"] == 4 * PARAMETERS
    assert two["gradients of earlier passes"] == PARAMETERS
    assert one["activations"] == PER_SAMPLE
    assert one["weights in bfloat16"] == COPIES
    # A bucket of 200 MB and this worker's piece of the pass's gradients.
    assert two["backward pass: gradients, temporaries"] == pytest.approx(200e6 + PARAMETERS, abs=10)


def test_a_step_of_one_pass_holds_no_earlier_gradients() -> None:
    alone = replace(tiny().train.diffusion, prior_weight=0.0)
    memory = training_memory(config(diffusion=alone, batch_size=4, micro_batch_size=1), num_workers=4)
    assert "gradients of earlier passes" not in memory.backward


def test_an_adapter_has_gradients_of_what_is_trained_only() -> None:
    memory = training_memory(with_stage(1, trained="adapter"), num_workers=1)
    assert memory.backward["weights"] == 4 * PARAMETERS
    assert memory.backward["gradients of earlier passes"] == 0.4 * PARAMETERS
    # Whole gradients, this worker's piece, which is all of them, and a bucket: more than the update itself takes.
    assert memory.step == pytest.approx(4 * PARAMETERS + 1.2 * PARAMETERS + 2 * 0.4 * PARAMETERS + 200e6)


def test_without_zero_every_worker_has_all_but_a_copy_of_the_weights() -> None:
    one, two = (training_memory(with_stage(0), num_workers=count) for count in (1, 2))
    assert one == two
    assert one.backward["optimizer: moments and its own weights"] == 8 * PARAMETERS
    averaged = training_memory(with_stage(0, average_decay=0.9), num_workers=1)
    assert averaged.step - one.step == 4 * PARAMETERS


def test_the_smallest_stage_and_then_the_most_samples() -> None:
    plan = size_training(config(batch_size=32), SizingConfig(gpus=4, gpu_memory=80))
    assert (plan.config.train.engine.zero_stage, plan.config.train.micro_batch_size) == (1, 8)
    assert plan.passes == 2  # posed views and prior images
    assert plan.fits
    whole = size_training(config(batch_size=32), SizingConfig(gpus=4, gpu_memory=80)).memory
    needs_two = training_memory(with_stage(2, batch_size=32, micro_batch_size=1), num_workers=4).peak
    needs_one = training_memory(with_stage(1, batch_size=32, micro_batch_size=1), num_workers=4).peak
    assert needs_two < needs_one < whole.peak
    tight = size_training(config(batch_size=32), SizingConfig(gpus=4, gpu_memory=(needs_one + needs_two) / 2 / GB))
    assert (tight.config.train.engine.zero_stage, tight.config.train.micro_batch_size) == (2, 1)
    assert tight.passes == 16


@pytest.mark.parametrize("size", [8, 4, 3, 2, 1])
def test_of_the_samples_at_once_as_many_as_fit(size: int) -> None:
    needs = training_memory(with_stage(1, batch_size=32, micro_batch_size=size), num_workers=4).peak
    plan = size_training(config(batch_size=32), SizingConfig(gpus=4, gpu_memory=needs / GB + 0.1))
    assert plan.config.train.micro_batch_size == size


def test_one_gpu_shares_nothing_out() -> None:
    needs = {stage: training_memory(with_stage(stage, micro_batch_size=1), num_workers=1).peak for stage in (0, 1, 2)}
    assert needs[0] < min(needs[1], needs[2])
    plan = size_training(config(), SizingConfig(gpus=1, gpu_memory=(needs[0] + needs[1]) / 2 / GB))
    assert plan.fits
    assert plan.config.train.engine.zero_stage == 0
    assert plan.step.sending == plan.step.sent_bytes == 0


def test_what_is_given_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    given, settings = with_stage(2, batch_size=32, micro_batch_size=3), SizingConfig(gpus=4)
    plan = size_training(given, settings, kept={MICRO_BATCH_SIZE, ZERO_STAGE})
    assert plan.config == given
    assert plan.memory == training_memory(given, num_workers=4)
    one = size_training(given, settings, kept={ZERO_STAGE}).config.train
    assert (one.engine.zero_stage, one.micro_batch_size) == (2, 8)
    one = size_training(given, settings, kept={MICRO_BATCH_SIZE}).config.train
    assert (one.engine.zero_stage, one.micro_batch_size) == (1, 3)
    sizing_text.print_sizing(given, settings, kept={MICRO_BATCH_SIZE})
    assert "fits with ZeRO 1, 3 samples at a time (as given): 6 backward passes" in capsys.readouterr().out


def test_what_is_given_and_does_not_fit_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    given, settings = with_stage(1, batch_size=32, micro_batch_size=8), SizingConfig(gpus=4, gpu_memory=16)
    assert size_training(given, settings).fits
    plan = size_training(given, settings, kept={MICRO_BATCH_SIZE})
    assert not plan.fits
    assert next(remedies(plan, settings.gpu_memory)).startswith(f"{MICRO_BATCH_SIZE} 1: ")
    sizing_text.print_sizing(given, settings, kept={MICRO_BATCH_SIZE})
    printed = capsys.readouterr().out
    assert re.search(r"DOES NOT FIT: \d+\.\d GB with ZeRO 2, 8 samples at a time \(as given\)\. What would", printed)


def test_options_count_as_given_however_they_are_written() -> None:
    options = (MICRO_BATCH_SIZE, ZERO_STAGE)
    assert given_options(["--train.micro_batch_size=4", "--gpus", "2"], options) == {MICRO_BATCH_SIZE}
    assert given_options([ZERO_STAGE, "1"], options) == {ZERO_STAGE}
    assert given_options(["--preset", "paper"], options) == set()


def test_a_micro_batch_is_no_larger_than_a_gpus_share() -> None:
    large, whole = (config(batch_size=8, micro_batch_size=size) for size in (100, 4))
    assert training_memory(large, num_workers=2) == training_memory(whole, num_workers=2)


def test_a_share_that_does_not_come_out_even_is_divided_evenly() -> None:
    plan = size_training(config(batch_size=55), SizingConfig(gpus=5, gpu_memory=80))
    assert (plan.config.train.micro_batch_size, plan.passes) == (6, 4)  # 11 samples each, at most 8 at a time


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_only_known_kinds_of_gpu_are_recognised(device: str, name: str | None) -> None:
    gpu = recognise_gpu(device)
    assert (None if gpu is None else gpu.name) == name


def test_what_gpus_send_grows_with_passes_under_zero_2() -> None:
    plan = size_training(config(batch_size=32), SizingConfig(gpus=4, gpu="h100"))
    # One sum over the GPUs, which takes twice the gradients, and the weights; three of four parts are others'.
    assert plan.step.sent_bytes == pytest.approx(3 * 4 * PARAMETERS * 3 / 4)
    hops = 3 * 3 * 20  # three hops of three rounds for each of 20 buckets
    assert plan.step.sending == pytest.approx(plan.step.sent_bytes / 450e9 + hops * 5e-6)
    two = with_stage(2, batch_size=32, micro_batch_size=4)
    both = {MICRO_BATCH_SIZE, ZERO_STAGE}
    assert size_training(two, SizingConfig(gpus=4), kept=both).step.sent_bytes == pytest.approx(9 * 3e9)
    none = size_training(with_stage(0, batch_size=32), SizingConfig(gpus=4), kept=both)
    assert none.step.sent_bytes == pytest.approx(2 * 3e9)  # all have all weights


def test_a_ring_between_machines_is_as_fast_as_their_adapters() -> None:
    h100 = choose_gpu(80, "h100")
    assert ring_link(h100, SizingConfig(gpus=8)) == Link(5e-6, 450e9)
    assert ring_link(h100, SizingConfig(gpus=64)).speed == 50e9
    assert ring_link(h100, SizingConfig(gpus=64, network_gigabits=3200)) == Link(pytest.approx(5.625e-6), 400e9)
    # The formula: twice around three hops, each with a fourth of the bytes.
    assert ring_seconds(4000, 4, Link(1.0, 100.0), rounds=2) == pytest.approx(2 * 3 * (1 + 10))


def test_time_goes_with_gpus_and_utilisation() -> None:
    plan = size_training(config(batch_size=32), SizingConfig(gpus=1, utilisation=0.25))
    faster = size_training(config(batch_size=32), SizingConfig(gpus=4, utilisation=0.5))
    assert plan.step.computing == pytest.approx(8 * faster.step.computing)
    assert faster.step.seconds == faster.step.computing + faster.step.sending
    assert plan.days(plan.step.seconds) == pytest.approx(plan.step.seconds * 600 / 86_400)


def test_what_does_not_fit_comes_with_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    settings = SizingConfig(gpus=1, gpu_memory=11.0)
    plan = size_training(config(), settings)
    assert not plan.fits
    found = list(remedies(plan, settings.gpu_memory))
    assert [line.partition(":")[0] for line in found[:2]] == ["--train.trained adapter", "--gpus 4"]
    assert found[-1].startswith("GPUs of ")
    sizing_text.print_sizing(config(), settings)
    printed = capsys.readouterr().out
    assert "DOES NOT FIT" in printed
    assert "--train.trained adapter" in printed
    sizing_text.print_sizing(config(), SizingConfig(gpus=2))
    printed = capsys.readouterr().out
    assert "fits with ZeRO 1, 4 samples at a time: 2 backward passes per step and GPU" in printed
    assert "DOES NOT FIT" not in printed
    assert re.search(r"\n  sending 6\.0 GB from each GPU, 300 GB/s +\S+ s", printed)
    assert "\n  together " in printed


@pytest.mark.parametrize(
    ("memory", "name"), [(10, "rtx3090"), (24, "rtx3090"), (40, "a100"), (80, "a100"), (100, "h200"), (300, "h200")]
)
def test_a_gpu_is_known_by_its_memory(memory: float, name: str) -> None:
    assert choose_gpu(memory, None).name == name
