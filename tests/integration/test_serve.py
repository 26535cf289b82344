"""Ray Serve on a cluster that outlives evaluations: drivers and replicas that are killed, and evaluations at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import ray
from ray import serve
from ray.cluster_utils import Cluster

from infra.cluster.connection import CHECKOUT, _require_token, ended_jobs, ensure_ray
from infra.errors import UserError
from infra.log import Progress
from pipelines.evaluation.generating import generate_objects
from pipelines.evaluation.objects import choose_objects, choose_texts
from pipelines.generation.generator import GeneratedSample, SampleGenerator, SampleRequest
from pipelines.generation.pictures import ObjectPictures
from pipelines.serving import deployment as serve_module
from pipelines.serving.application import end_orphans, new_name
from pipelines.serving.deployment import RequestError, ServeConfig, _Replica, serving
from pipelines.spine.artifacts import Artifact
from tests.support.evaluation_driver import config
from tests.support.evaluation_inputs import open_shards, write_evaluation_inputs

SECONDS_TO_END = 30.0  # of an application, after its driver was killed
LONG = 900  # denoising steps: much longer than a test
POISON = "poison"

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster of four slots, which this process and others may connect to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(CHECKOUT))  # of the workers
        ray.shutdown()  # of an earlier test, which had a Ray of its own
        _require_token()
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
        patch.setenv("RAY_ADDRESS", cluster.address)
        ensure_ray()
        serve.start(proxy_location="Disabled")  # and forget the Serve of an earlier test's Ray
        yield cluster.address
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return write_evaluation_inputs(tmp_path_factory.mktemp("serve") / "inputs")


@pytest.fixture
def served(inputs: dict[str, Artifact]) -> ServeConfig:
    return ServeConfig(
        model=inputs["checkpoint"].fingerprint,
        model_dir=inputs["checkpoint"].folder / "model",
        base_dir=inputs["base"].folder,
        max_batch_size=2,
    )


class Driver:
    """An evaluation in another process; ended with the test."""

    def __init__(self, root: Path, folder: Path, num_steps: int) -> None:
        self._output = folder.with_suffix(".txt")
        command = [sys.executable, "-m", "tests.support.evaluation_driver", str(root), str(folder), str(num_steps)]
        with self._output.open("w") as output:
            self.process = subprocess.Popen(command, cwd=CHECKOUT, stdout=output, stderr=subprocess.STDOUT)

    def said(self) -> str:
        return self._output.read_text()

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()


def wait_until(
    condition: Callable[[], Any], what: Callable[[], str] = lambda: str(serve.status()), *, seconds: float = 400.0
) -> float:
    """Seconds until `condition()` was true; `what()` is said if that takes too long."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + seconds, what()
        time.sleep(0.2)
    return time.monotonic() - started


def nothing_served() -> bool:
    return not serve.status().applications


def running() -> list[str]:
    return [name for name, item in serve.status().applications.items() if item.status == "RUNNING"]


def replicas() -> list[psutil.Process]:
    """Those that run; the cluster's nodes are children of this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # ended meanwhile
            found += [process] if "ray::ServeReplica" in " ".join(process.cmdline()) else []
    return found


def test_an_application_ends_with_its_driver(address: str, inputs: dict[str, Artifact], tmp_path: Path) -> None:
    """However that ends: if it is killed the replica notices, if its terminal is closed it sees to that itself."""
    for stop in (signal.SIGKILL, signal.SIGHUP):
        with Driver(inputs["shards"].folder.parents[1], tmp_path / stop.name, LONG) as driver:
            wait_until(lambda: running() or driver.process.poll() is not None, driver.said)
            assert len(running()) == 1, driver.said()
            wait_until(lambda: "starting at 0/4 objects" in driver.said(), driver.said)
            driver.process.send_signal(stop)
            seconds = wait_until(lambda: nothing_served() and not replicas())
            assert seconds < SECONDS_TO_END
            assert driver.process.wait(timeout=60) == (130 if stop == signal.SIGHUP else -stop)
    assert "interrupted; run the same command again to go on" in driver.said()


def test_two_evaluations_of_a_model_do_not_meet(address: str, inputs: dict[str, Artifact], tmp_path: Path) -> None:
    """Also when both start Serve, and when one is over while the other still runs."""
    serve.shutdown()
    root = inputs["shards"].folder.parents[1]
    (tmp_path / "long").mkdir()
    (tmp_path / "short").mkdir()
    with Driver(root, tmp_path / "long" / "it", 40) as long, Driver(root, tmp_path / "short" / "it", 2) as short:
        assert short.process.wait(timeout=600) == 0, short.said()
        assert long.process.wait(timeout=600) == 0, long.said()
    wait_until(nothing_served, seconds=SECONDS_TO_END)
    tables = [pq.read_table(tmp_path / name / "it" / "objects.parquet") for name in ("long", "short")]
    assert tables[0]["reason"].null_count == tables[1]["reason"].null_count == 2


class Mortal(_Replica):
    """Dies, as if it was killed, of every request for POISON."""

    def __init__(self, config: ServeConfig) -> None:
        super().__init__(config)
        make = self._generator.generate

        def generate(requests: list[SampleRequest]) -> list[GeneratedSample]:
            if any(request.text == POISON for request in requests):
                os.kill(os.getpid(), signal.SIGKILL)
            return make(requests)

        self._generator.generate = generate  # type: ignore[method-assign, assignment]


def test_a_replica_that_dies_is_replaced(
    address: str,
    inputs: dict[str, Artifact],
    served: ServeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What others had asked of it is asked again, and becomes what it would have been."""
    monkeypatch.setattr(serve_module, "_Replica", Mortal)
    index, reader = open_shards(inputs)
    settings = config(num_steps=2, split="train", max_batch_size=2)
    poisoned, *others = [*choose_texts(index, settings), *choose_objects(index, settings)]
    tasks = [others[0], replace(poisoned, caption=POISON), *others[1:]]
    progress = Progress("evaluate", total=len(tasks), unit="objects")
    with serving(served) as client:
        failures = generate_objects(
            tasks, client, reader, tmp_path, progress=progress, max_in_flight=len(tasks), most_failures=1
        )
    assert list(failures) == [poisoned.name]
    assert "dies of it, also alone, 2 times (ActorDiedError: " in failures[poisoned.name]
    generator = SampleGenerator.load(served.model_dir, served.base_dir)
    for task in others:
        made = ObjectPictures.load(task.path(tmp_path)).generated.astype(int)
        [expected] = generator.generate([task.request(reader)])
        # One grey level, because sums of floats depend on the number of threads.
        assert np.abs(made - expected.images[min(len(task.rows), 1) :]).max() <= 1


def test_a_model_that_cannot_be_read_is_told(address: str, served: ServeConfig, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=rf"the model cannot be served: {tmp_path}/config.json: cannot be read"),
        serving(replace(served, model_dir=tmp_path)),
    ):
        pass
    wait_until(nothing_served, seconds=SECONDS_TO_END)


def test_an_application_that_somebody_takes_down_is_missed(
    address: str, inputs: dict[str, Artifact], served: ServeConfig
) -> None:
    index, reader = open_shards(inputs)
    [task] = choose_objects(index, config(num_steps=LONG, max_batch_size=1))
    with serving(served) as client:
        answer = client.generate(task.request(reader))
        time.sleep(1)
        serve.delete(running()[0], _blocking=False)
        with pytest.raises((UserError, RequestError), match=r"somebody took down|died"):
            answer.result()
        with pytest.raises(UserError, match=r"somebody took down .* run the same command again"):
            client.generate(task.request(reader)).result()


class Anything:
    """A deployment that never runs."""


def test_what_waits_for_room_is_taken_down_by_others(address: str) -> None:
    """It has no replica that could notice the end of its driver. Nobody else's is touched."""
    serve.start(proxy_location="Disabled")
    before = ended_jobs()
    connect = "from infra.cluster.connection import ensure_ray; ensure_ray()"
    subprocess.run([sys.executable, "-c", connect], cwd=CHECKOUT, check=True, timeout=400)
    (ended,) = ended_jobs() - before
    names = [f"viewdiff-m-{ended}-0000abcd", new_name("m"), f"other-m-{ended}-0000abcd"]
    deployment = serve.deployment(Anything, ray_actor_options={"num_cpus": 100})
    for name in names:
        target = serve.RunTarget(deployment.bind(), name=name, route_prefix=None)
        serve.run_many([target], wait_for_applications_running=False)
    assert end_orphans() == names[:1]
    wait_until(lambda: set(serve.status().applications) == set(names[1:]), seconds=SECONDS_TO_END)
    for name in names[1:]:
        serve.delete(name)
