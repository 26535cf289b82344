"""Evaluation: what is chosen, generated, resumed, scored and recorded; once through Ray Serve, else in this process."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.errors import UserError
from infra.log import Progress, get_logger
from infra.tracking.experiment import Tracking
from model.config import SamplingConfig
from pipelines.evaluation.generating import ATTEMPTS_ALONE, Answer, Failures, generate_objects
from pipelines.evaluation.objects import choose_frames, choose_objects, choose_texts
from pipelines.evaluation.scoring import SCORE_COLUMNS, mean_training_image
from pipelines.generation.generator import SampleGenerator, SampleRequest
from pipelines.generation.pictures import ObjectPictures, pictures_path
from pipelines.generation.task import EvaluationTask
from pipelines.serving.deployment import RequestError
from pipelines.settings.run import EvaluateConfig
from pipelines.spine.artifacts import Artifact, EvaluationReport
from pipelines.spine.runtime import RuntimeConfig
from pipelines.spine.stage import Stage
from pipelines.stages import evaluate as evaluate_module
from pipelines.stages.evaluate import evaluate, score_objects
from tests.support.evaluation_inputs import HELD_OUT, SHARD, open_shards, write_evaluation_inputs
from tests.support.training_inputs import IMAGE_SIZE, NUM_FRAMES

CONFIG = EvaluateConfig(
    sampling=SamplingConfig(num_steps=2, guidance_scale=2.0),
    split=HELD_OUT,
    num_objects=3,
    num_text_objects=1,
    num_views=4,
    max_batch_size=2,
)


MANY = replace(CONFIG, split="train", num_text_objects=2)  # two objects and two texts


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return write_evaluation_inputs(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def generator(inputs: dict[str, Artifact]) -> SampleGenerator:
    return SampleGenerator.load(inputs["checkpoint"].folder / "model", inputs["base"].folder)


class Now:
    """An answer that is there."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def result(self) -> Any:
        return self._value


class Never:
    """An answer that does not come."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def result(self) -> Any:
        raise self._error


class LocalClient:
    """A served model without a server; dies after `lifetime` requests. `trouble` decides which get no answer."""

    def __init__(
        self,
        generator: SampleGenerator,
        *,
        lifetime: int = 1000,
        trouble: Callable[[SampleRequest, int], Exception | None] = lambda request, number: None,
    ) -> None:
        self._generator, self._lifetime, self._trouble = generator, lifetime, trouble
        self.requests: list[SampleRequest] = []

    def generate(self, request: SampleRequest) -> Answer:
        if len(self.requests) == self._lifetime:
            raise ConnectionError("killed")
        self.requests.append(request)
        error = self._trouble(request, len(self.requests))
        return Now(self._generator.generate([request])[0]) if error is None else Never(error)

    def reconstruct(self, images: np.ndarray) -> Now:
        return Now(self._generator.reconstruct(images))


def tasks_of(inputs: dict[str, Artifact], config: EvaluateConfig) -> list[EvaluationTask]:
    index, _ = open_shards(inputs)
    return [*choose_objects(index, config), *choose_texts(index, config)]


def run_tasks(
    tasks: list[EvaluationTask],
    client: LocalClient,
    inputs: dict[str, Artifact],
    folder: Path,
    *,
    max_in_flight: int = 1,
    most_failures: int = 0,
) -> Failures:
    folder.mkdir(exist_ok=True)
    return generate_objects(
        tasks,
        client,
        open_shards(inputs)[1],
        folder,
        progress=Progress("evaluate", total=len(tasks), unit="objects"),
        max_in_flight=max_in_flight,
        most_failures=most_failures,
    )


def test_the_choice_is_a_function_of_the_seed(inputs: dict[str, Artifact]) -> None:
    index, _ = open_shards(inputs)
    [held_out] = index.sequences(HELD_OUT)
    choices = {choose_frames(index, held_out, num_views=4, seed=seed) for seed in range(40)}
    assert choose_frames(index, held_out, num_views=4, seed=3) == choose_frames(index, held_out, num_views=4, seed=3)
    assert {choice[0] for choice in choices} == set(held_out.rows)  # every frame is given at times
    for choice in choices:
        assert len(set(choice)) == 4
        assert set(choice) <= set(held_out.rows)
    assert len(choose_frames(index, held_out, num_views=99, seed=0)) == NUM_FRAMES


def test_objects_are_held_out_and_texts_use_guidance(inputs: dict[str, Artifact]) -> None:
    tasks = tasks_of(inputs, CONFIG)
    assert [task.name for task in tasks] == [("apple", "sequence_2"), ("text-0",)]  # there is only one to hold out
    assert tasks[0].sampling == SamplingConfig(num_steps=2, guidance_scale=1.0)
    assert tasks[1].sampling == CONFIG.sampling
    assert tasks[1].rows == ()


def test_a_split_without_objects_is_refused(inputs: dict[str, Artifact]) -> None:
    index, _ = open_shards(inputs)
    with pytest.raises(UserError, match="split test of the shards holds no sequence"):
        choose_objects(index, replace(CONFIG, split="test"))


def test_evaluation_batches_say_which_frames(inputs: dict[str, Artifact]) -> None:
    index, _ = open_shards(inputs)
    config = replace(CONFIG, views="eval_batches", num_objects=3)
    with pytest.raises(UserError, match=r"split val .* has none of their 0 evaluation batches: preprocess with"):
        choose_objects(index, config)
    numbers = [(2, [3, 1, 0]), (2, [0, 4]), (0, [0, 1]), (2, [9, 1]), (2, [3, 0]), (2, [3, 1])]
    index.manifest["eval_batches"] = [
        {"category": "apple", "sequence": f"sequence_{sequence}", "frame_numbers": frames}
        for sequence, frames in numbers
    ]
    tasks = choose_objects(index, config)  # neither training objects nor frames that are not stored, and none twice
    assert [task.name[1] for task in tasks] == ["sequence_2#3 from 1", "sequence_2#0 from 4", "sequence_2#3 from 0"]
    assert [index.frame_numbers[list(task.rows)].tolist() for task in tasks] == [[1, 3], [4, 0], [0, 3]]
    assert len({task.seed for task in tasks}) == 3
    assert len(choose_objects(index, replace(config, num_objects=1))) == 1


def test_pictures_belong_to_their_frames(
    inputs: dict[str, Artifact], generator: SampleGenerator, tmp_path: Path
) -> None:
    tasks, (index, reader) = tasks_of(inputs, CONFIG), open_shards(inputs)
    run_tasks(tasks, LocalClient(generator), inputs, tmp_path / "pictures")
    pictures = ObjectPictures.load(tasks[0].path(tmp_path / "pictures"))
    known, *targets = tasks[0].rows
    assert pictures.generated.shape == (3, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert pictures.known is not None
    assert pictures.truth is not None
    assert np.array_equal(pictures.known, reader.image(known))
    assert np.array_equal(pictures.truth, np.stack([reader.image(row) for row in targets]))
    centers = index.cameras(targets).centers().numpy()
    assert pictures.azimuth == pytest.approx(np.arctan2(centers[:, 1], centers[:, 0]), abs=1e-5)
    assert pictures.depth is not None
    assert pictures.depth.shape[0] == 3
    text = ObjectPictures.load(tasks[1].path(tmp_path / "pictures"))
    assert text.generated.shape[0] == CONFIG.num_views
    assert text.truth is None


def test_a_killed_evaluation_goes_on_where_it_stopped(
    inputs: dict[str, Artifact], generator: SampleGenerator, tmp_path: Path
) -> None:
    tasks = tasks_of(inputs, CONFIG)
    run_tasks(tasks, LocalClient(generator), inputs, tmp_path / "whole")
    with pytest.raises(ConnectionError):
        run_tasks(tasks, LocalClient(generator, lifetime=1), inputs, tmp_path / "killed")
    missing = [task for task in tasks if not task.path(tmp_path / "killed").exists()]
    assert [task.name for task in missing] == [("text-0",)]
    client = LocalClient(generator)
    run_tasks(missing, client, inputs, tmp_path / "killed")
    assert len(client.requests) == 1
    for task in tasks:
        whole, resumed = (ObjectPictures.load(task.path(tmp_path / name)) for name in ("whole", "killed"))
        assert np.array_equal(whole.generated, resumed.generated)


def test_scores_are_those_of_the_right_pictures(
    inputs: dict[str, Artifact], generator: SampleGenerator, tmp_path: Path
) -> None:
    """The truth in the place of generated pictures must win, and the baselines must be what they are called."""
    index, reader = open_shards(inputs)
    [task] = choose_objects(index, CONFIG)
    run_tasks([task], LocalClient(generator), inputs, tmp_path)
    pictures = ObjectPictures.load(task.path(tmp_path))
    assert pictures.truth is not None
    assert pictures.known is not None
    replace(pictures, generated=pictures.truth).save(task.path(tmp_path))
    columns = score_objects([task], index, reader, tmp_path, {})
    assert columns["known_frame"] == [int(index.frame_numbers[task.rows[0]])]
    assert columns["target_frames"] == [[int(index.frame_numbers[row]) for row in task.rows[1:]]]
    assert columns["psnr"] == [pytest.approx(100.0)]
    assert columns["ssim"] == [pytest.approx(1.0)]
    errors = (pictures.known.astype(float) - pictures.truth) / 255
    expected = np.mean(-10 * np.log10(np.square(errors).mean(axis=(1, 2, 3))))
    assert columns["psnr_copy"] == [pytest.approx(expected, abs=1e-4)]  # the pictures are float32 in between
    train = [reader.image(row) for item in index.sequences("train") for row in item.rows]
    assert np.abs(mean_training_image(index, reader) - np.mean(train, axis=0)).max() <= 0.5


def pictures_of(tasks: list[EvaluationTask], folder: Path) -> dict[tuple[str, ...], bytes]:
    made = [task for task in tasks if task.path(folder).exists()]
    return {task.name: ObjectPictures.load(task.path(folder)).generated.tobytes() for task in made}


def test_only_what_fails_alone_has_failed(
    inputs: dict[str, Artifact], generator: SampleGenerator, tmp_path: Path
) -> None:
    """A replica that dies takes every request with it that it has; one of these kills it each time."""
    tasks = tasks_of(inputs, MANY)
    run_tasks(tasks, LocalClient(generator), inputs, tmp_path / "whole")
    killer, lost = tasks[1], RequestError("it died", replica_lost=True)
    in_flight = len(tasks) - 1

    def die(request: SampleRequest, number: int) -> Exception | None:
        return lost if number <= in_flight or request.seed == killer.seed else None

    client = LocalClient(generator, trouble=die)
    failures = run_tasks(tasks, client, inputs, tmp_path / "some", max_in_flight=in_flight, most_failures=1)
    assert failures == {killer.name: f"whoever generates it dies of it, also alone, {ATTEMPTS_ALONE} times (it died)"}
    asked = [request.seed for request in client.requests]
    assert [asked.count(task.seed) for task in tasks] == [2, 1 + ATTEMPTS_ALONE, 2, 1]
    expected = pictures_of(tasks, tmp_path / "whole")
    del expected[killer.name]
    assert pictures_of(tasks, tmp_path / "some") == expected


def test_what_the_model_refuses_is_not_asked_for_again_and_again(
    inputs: dict[str, Artifact], generator: SampleGenerator, tmp_path: Path
) -> None:
    tasks = tasks_of(inputs, MANY)
    refused = RequestError("ValueError: no such text", replica_lost=False)
    client = LocalClient(generator, trouble=lambda request, _: refused if request.seed == tasks[0].seed else None)
    failures = run_tasks(tasks, client, inputs, tmp_path, max_in_flight=2, most_failures=1)
    assert failures == {tasks[0].name: "ValueError: no such text"}
    assert [request.seed for request in client.requests].count(tasks[0].seed) == 2  # in company and alone


def test_too_many_failures_end_it_soon(inputs: dict[str, Artifact], generator: SampleGenerator, tmp_path: Path) -> None:
    tasks = tasks_of(inputs, MANY)
    client = LocalClient(generator, trouble=lambda *_: RequestError("out of memory", replica_lost=False))
    message = r"2 objects failed, at most 1 may \(apple/sequence_\d and others: out of memory\); mend that"
    with pytest.raises(UserError, match=message):
        run_tasks(tasks, client, inputs, tmp_path, max_in_flight=1, most_failures=1)
    assert len(client.requests) == 4  # of two objects, in company and alone; the others were not asked for


@pytest.fixture
def damaged(tmp_path: Path) -> dict[str, Artifact]:
    """Inputs with a training frame that cannot be read: the first one of sequence_0."""
    inputs = write_evaluation_inputs(tmp_path / "root")
    [offset, _] = open_shards(inputs)[0].image_spans[0]
    path = inputs["shards"].folder / SHARD
    data = bytearray(path.read_bytes())
    data[offset + 50] ^= 1
    path.write_bytes(data)
    return inputs


def test_the_mean_image_is_that_of_the_frames_that_can_be_read(
    damaged: dict[str, Artifact], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, reader = open_shards(damaged)
    get_logger("evaluate")  # its first call turns propagation off
    monkeypatch.setattr(logging.getLogger("viewdiff"), "propagate", True)
    train = [reader.image(row) for item in index.sequences("train") for row in item.rows if row != 0]
    assert np.abs(mean_training_image(index, reader) - np.mean(train, axis=0)).max() <= 0.5
    assert "without 1 of 10 frames" in caplog.text


def test_the_stage_records_what_fails_and_does_the_rest(
    damaged: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two objects one has a frame that cannot be read; one of two texts is refused; a file was cut off."""
    runtime, folder = RuntimeConfig(root=str(tmp_path)), tmp_path / "evaluation"
    config = replace(MANY, num_views=NUM_FRAMES, max_failed_share=0.5)  # every object shows all its frames
    generator = SampleGenerator.load(damaged["checkpoint"].folder / "model", damaged["base"].folder)
    first, second, _, text = tasks_of(damaged, config)
    bad, good = (first, second) if 0 in first.rows else (second, first)
    refused = RequestError("ValueError: no such text", replica_lost=False)
    client = LocalClient(generator, trouble=lambda request, _: refused if request.seed == text.seed else None)
    monkeypatch.setattr(evaluate_module, "serving", lambda served: nullcontext(client))
    monkeypatch.setattr(evaluate_module, "ensure_ray", lambda: None)
    folder.mkdir()
    run_tasks([good], LocalClient(generator), damaged, folder / "pictures")
    whole = good.path(folder / "pictures").read_bytes()
    good.path(folder / "pictures").write_bytes(whole[: len(whole) // 2])

    facts = evaluate(config, damaged, folder, runtime)
    assert pictures_of([good], folder / "pictures")
    rows = {row["sequence"]: row for row in pq.read_table(folder / "objects.parquet").to_pylist()}
    assert "frame in row 0 is damaged" in rows[bad.name[1]]["reason"]
    assert {rows[bad.name[1]][name] for name in SCORE_COLUMNS} == {None}
    assert rows[good.name[1]]["reason"] is None
    summary = json.loads((folder / "summary.json").read_text())
    assert {name: summary[name] for name in SCORE_COLUMNS} == {name: rows[good.name[1]][name] for name in SCORE_COLUMNS}
    assert (summary["num_scored_objects"], summary["num_objects"]) == (1, 2)
    assert summary["failed_texts"] == {"text-1": "ValueError: no such text"}
    run = Tracking(runtime.tracking).resume(facts["mlflow_run_id"]).client.get_run(facts["mlflow_run_id"])
    assert run.data.metrics["num_scored_objects"] == 1

    strict = replace(config, max_failed_share=0.25)
    assert Stage(name="evaluate", run=evaluate, kind=EvaluationReport, config=strict).fingerprint == (
        Stage(name="evaluate", run=evaluate, kind=EvaluationReport, config=config).fingerprint
    )
    with pytest.raises(UserError, match="2 objects failed, at most 1 may"):
        evaluate(strict, damaged, folder, runtime)


def test_an_evaluation_without_any_score_fails(
    inputs: dict[str, Artifact], generator: SampleGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the only object there is none, and a text has no truth: there is no mean."""
    config = replace(CONFIG, max_failed_share=0.9)
    broken = RequestError("broken", replica_lost=False)
    client = LocalClient(generator, trouble=lambda request, _: broken if len(request.known_images) else None)
    monkeypatch.setattr(evaluate_module, "serving", lambda served: nullcontext(client))
    monkeypatch.setattr(evaluate_module, "ensure_ray", lambda: None)
    folder = tmp_path / "evaluation"
    folder.mkdir()
    with pytest.raises(UserError, match=r"no object has scores, so there is no mean: 1 object failed \("):
        evaluate(config, inputs, folder, RuntimeConfig(root=str(tmp_path)))
    assert not (folder / "objects.parquet").exists()


@pytest.mark.timeout(600)
def test_the_stage_through_ray_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = RuntimeConfig(root=str(tmp_path), num_workers=1)
    tracking = Tracking(runtime.tracking)
    parent = tracking.start("train", tags={})
    inputs = write_evaluation_inputs(tmp_path, train_run_id=parent.id)
    folder = tmp_path / "evaluation"
    folder.mkdir()
    facts = evaluate(CONFIG, inputs, folder, runtime)

    table = pq.read_table(folder / "objects.parquet")
    assert set(SCORE_COLUMNS) < set(table.column_names)
    assert ObjectPictures.load(pictures_path(folder / "pictures", "apple", "sequence_2")).caption == "a red apple"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["num_objects"] == 1
    assert summary["psnr"] == pytest.approx(table["psnr"][0].as_py())
    assert np.isfinite([summary[name] for name in SCORE_COLUMNS]).all()
    run = tracking.resume(facts["mlflow_run_id"]).client.get_run(facts["mlflow_run_id"])
    assert run.data.tags["mlflow.parentRunId"] == parent.id
    assert run.data.metrics["psnr"] == pytest.approx(summary["psnr"])
    assert run.info.status == "FINISHED"

    def no_server(*_: Any) -> None:
        raise AssertionError("everything is there")

    monkeypatch.setattr(evaluate_module, "serving", no_server)
    again = evaluate(CONFIG, inputs, folder, runtime)
    assert again == facts  # the same run, the same numbers
    logged = tracking.resume(facts["mlflow_run_id"]).client.get_run(facts["mlflow_run_id"]).inputs.dataset_inputs
    assert [item.dataset.name for item in logged] == [f"shards-{inputs['shards'].fingerprint}"]
