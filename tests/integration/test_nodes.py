"""Workers on several nodes: nodes that die, that announce it, and that come; a controller and a raylet that die."""

from __future__ import annotations

import os
import pty
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from infra.cluster.connection import CHECKOUT, _require_token
from infra.storage.files import digest_folder
from pipelines.training.job import TrainJob
from pipelines.training.worker import train_in_worker
from tests.distributed.launch import TIMEOUT_SECONDS, run_distributed
from tests.integration.test_train import inputs, records
from tests.support.nodes import CONFIG, REQUEST_NAME, Driver, counted, wait_for, workers_below
from tests.support.training_inputs import write_inputs

pytestmark = pytest.mark.timeout(3 * TIMEOUT_SECONDS)


class Nodes:
    """A head without CPUs, and nodes of one CPU, so that each worker has a node of its own."""

    def __init__(self) -> None:
        ray.shutdown()  # of an earlier test, which had a Ray of its own
        _require_token()
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.address = self._cluster.address
        self._nodes: list[Any] = []

    def add(self) -> Any:
        """One more node."""
        self._nodes.append(self._cluster.add_node(num_cpus=1))
        return self._nodes[-1]

    def raylet(self, node: Any) -> psutil.Process:
        """The process that is the node."""
        return psutil.Process(node.all_processes["raylet"][0].process.pid)

    def with_worker(self) -> Any:
        """A node that a worker of a training runs on."""
        alive = [node for node in self._nodes if node.all_processes and self.raylet(node).is_running()]
        return next((node for node in alive if workers_below(self.raylet(node))), None)

    def announce_end(self, node: Any) -> None:
        """What `ray drain-node`, an autoscaler or a node that gets SIGTERM tells the head."""
        client = ray._raylet.GcsClient(address=self.address)
        reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
        deadline_ms = int(1000 * time.time()) + 600_000
        accepted, message = client.drain_node(node.node_id, reason, "test", deadline_ms)
        assert accepted, message

    def end(self) -> None:
        """All of it."""
        self._cluster.shutdown()


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))  # of the nodes' workers
    monkeypatch.setenv("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0")  # nothing is left to wait for at the end
    nodes = Nodes()
    try:
        yield nodes
    finally:
        nodes.end()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nodes")
    write_inputs(folder / "inputs")
    return folder


def peaceful(root: Path, num_ranks: int) -> Path:
    """Folder of the same training that nobody disturbs, without Ray."""
    folder = root / "peaceful"
    folder.mkdir()
    folders = {f"{name}_dir": artifact.folder for name, artifact in inputs(root).items()}
    job = TrainJob(config=CONFIG, **folders, initial_dir=None, folder=folder, num_loaders=0)
    run_distributed(train_in_worker, num_ranks, job)
    return folder


def num_steps(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def lose_node(nodes: Nodes) -> psutil.Process:
    """Kill the raylet below a worker, which is held until it has no raylet, so that the training does not end before.
    Returns the worker.
    """
    node = nodes.with_worker()
    (worker,) = workers_below(nodes.raylet(node))
    worker.suspend()
    nodes.raylet(node).kill()
    return worker


def test_a_training_survives_its_nodes(nodes: Nodes, root: Path) -> None:
    """One node dies and a spare one takes over, exactly; then another dies, and fewer workers will do."""
    for _ in range(3):
        nodes.add()
    undisturbed = peaceful(root, 2)

    with Driver("train", root, root / "same", most=2, least=2, address=nodes.address) as driver:
        driver.wait_until(lambda: num_steps(root / "same") >= 7)
        worker = lose_node(nodes)
        driver.wait_until(lambda: "was lost or failed; going on from the newest checkpoint" in driver.said())
        with suppress(psutil.NoSuchProcess):  # Ray may have ended it meanwhile
            worker.resume()
        worker.wait(TIMEOUT_SECONDS)  # it is nobody's any more, and ends by itself
        assert driver.wait() == 0, driver.said()
    assert records(root / "same") == records(undisturbed)
    assert digest_folder(root / "same" / "model") == digest_folder(undisturbed / "model")

    folder = root / "fewer"
    with Driver("count", root, folder, most=2, least=1, address=nodes.address) as driver:
        driver.wait_until(lambda: counted(folder))
        (folder / REQUEST_NAME).touch()
        driver.wait_until(lambda: (folder / "saved").exists())
        with suppress(psutil.NoSuchProcess):
            lose_node(nodes).kill()
        driver.wait_until(lambda: counted(folder)[-1][1] == 1)
        saved = int((folder / "saved").read_text())
        assert next(number for number, num_ranks in counted(folder) if num_ranks == 1) == saved + 1
        (folder / "stop").touch()
        assert driver.wait() == 0, driver.said()


def test_workers_follow_the_nodes(nodes: Nodes, tmp_path: Path) -> None:
    """One node to begin with; another comes; one announces its end. Nothing that was saved is done again."""
    nodes.add()
    folder = tmp_path / "count"
    with Driver("count", tmp_path, folder, most=2, least=1, address=nodes.address) as driver:
        driver.wait_until(lambda: counted(folder))
        nodes.add()
        driver.wait_until(lambda: counted(folder)[-1][1] == 2)
        assert "there is room for 2 workers now; using it" in driver.said()
        first = next(number for number, num_ranks in counted(folder) if num_ranks == 2)
        saved = int((folder / "saved").read_text())
        assert first == saved + 1 > 1

        nodes.announce_end(nodes.with_worker())
        driver.wait_until(lambda: int((folder / "saved").read_text()) > saved)
        driver.wait_until(lambda: counted(folder)[-1][1] == 1)
        assert driver.said().count("is about to go; saving a checkpoint, then leaving it") == 1
        again = counted(folder)[::-1]
        first = again[next(place for place, (_, num_ranks) in enumerate(again) if num_ranks == 2) - 1][0]
        assert first == int((folder / "saved").read_text()) + 1
        (folder / "stop").touch()
        assert driver.wait() == 0, driver.said()


def test_controller_and_raylet_that_die(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller is replaced; without the raylet the driver says so, and nothing is left."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    folder = tmp_path / "count"
    with Driver("count", tmp_path, folder, most=1, least=1, address=None) as driver:
        driver.wait_until(lambda: counted(folder))
        family = psutil.Process(driver.process.pid).children(recursive=True)
        (folder / REQUEST_NAME).touch()
        driver.wait_until(lambda: (folder / "saved").exists())
        saved = int((folder / "saved").read_text())
        next(process for process in family if "TrainController" in " ".join(process.cmdline())).kill()
        driver.wait_until(lambda: "controller was lost; going on" in driver.said())
        driver.wait_until(lambda: [saved + 1, 1] in counted(folder)[saved + 1 :])  # for the second time

        family = psutil.Process(driver.process.pid).children(recursive=True)
        actors = [process for process in family if "Train" in " ".join(process.cmdline())]
        for process in actors:  # or their ends might reach the driver first, on a busy machine
            process.suspend()
        next(process for process in family if process.name() == "raylet").kill()
        assert driver.wait() == 2, driver.said()
        assert "Ray's process on this machine (raylet) was killed" in driver.said()
        for process in actors:
            with suppress(psutil.NoSuchProcess):
                process.resume()
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive


def test_a_lost_controller_keeps_no_room(nodes: Nodes, tmp_path: Path) -> None:
    """There is room for one worker: that of the lost controller must go for its successor's."""
    nodes.add()
    folder = tmp_path / "count"
    with Driver("count", tmp_path, folder, most=1, least=1, address=nodes.address) as driver:
        driver.wait_until(lambda: counted(folder))
        family = psutil.Process().children(recursive=True)
        next(process for process in family if "TrainController" in " ".join(process.cmdline())).kill()
        driver.wait_until(lambda: "controller was lost; going on" in driver.said())
        driver.wait_until(lambda: counted(folder).count([1, 1]) == 2)
        (folder / "stop").touch()
        assert driver.wait() == 0, driver.said()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_driver_leaves_no_worker(stop: signal.Signals, nodes: Nodes, tmp_path: Path) -> None:
    """After SIGTERM, as before a machine is taken away, and after SIGHUP, what was done is saved first."""
    nodes.add()
    folder = tmp_path / "count"
    with Driver("count", tmp_path, folder, most=1, least=1, address=nodes.address) as driver:
        driver.wait_until(lambda: counted(folder))
        driver.process.send_signal(stop)
        assert driver.wait() == 130, driver.said()
        assert (folder / "saved").exists() == (stop != signal.SIGINT)
        wait_for(lambda: nodes.with_worker() is None, driver.said)


def test_a_closed_terminal_leaves_a_ray_of_its_own_alive_until_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every process that was started from it gets SIGHUP; the workers have yet to save what they did."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    folder = tmp_path / "count"
    folder.mkdir()
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(CHECKOUT)
        arguments = ["count", str(tmp_path), str(folder), "1", "1"]
        os.execv(sys.executable, [sys.executable, "-m", "tests.support.nodes", *arguments])
    wait_for(lambda: counted(folder), lambda: f"the driver {pid} counts nothing")
    family = psutil.Process(pid).children(recursive=True)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert (folder / "saved").exists()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
