"""`ray job submit` to a cluster of two nodes with token authentication, as README prints it."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from infra.cluster.connection import CHECKOUT
from pipelines.spine.artifacts import Shards, load_artifact
from preprocessing.shards.reading import FrameIndex

pytestmark = pytest.mark.timeout(600)

BIN = Path(sys.executable).parent
START_SECONDS = 120.0
SMALL = (
    "--synth.objects-per-category 2 --synth.frames-per-sequence 6 --synth.image-size 32 "
    "--preprocess.minimum-frames 4 --preprocess.image-size 32"
)


@dataclass(frozen=True)
class Cluster:
    """A head and one more node on this machine."""

    dashboard: str
    environment: dict[str, str]

    def ray(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "ray"), *arguments]
        settings = self.environment | environment
        return subprocess.run(command, cwd=CHECKOUT, env=settings, capture_output=True, text=True, check=False)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    head, dashboard, client, *agents = free_ports(5)
    folders = [tempfile.mkdtemp(prefix="ray-") for _ in range(2)]  # pytest's own are too long for Ray's sockets
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"  # jobs find this Python by the name `python`
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | token | {"PATH": path}
    head_options = [
        *("--head", f"--port={head}", f"--ray-client-server-port={client}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
    ]
    nodes = []
    try:
        for options, folder, agent in zip(
            (head_options, [f"--address=127.0.0.1:{head}"]), folders, agents, strict=True
        ):
            common = ["--block", "--num-cpus=2", f"--temp-dir={folder}", f"--dashboard-agent-listen-port={agent}"]
            command = [str(BIN / "ray"), "start", *options, *common]
            with Path(folder, "start.log").open("w") as log:
                nodes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
            wait_for_port(head)
        wait_for_port(dashboard)
        yield Cluster(f"http://127.0.0.1:{dashboard}", environment)
    finally:
        for node in nodes:  # never `ray stop`, which ends everybody's
            family = [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]
            for process in family:
                process.kill()
            psutil.wait_procs(family, timeout=30)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens at port {port}"
            time.sleep(0.2)


def submit(cluster: Cluster, entrypoint: str, **environment: str) -> subprocess.CompletedProcess[str]:
    options = ["--address", cluster.dashboard, "--working-dir", "."]
    return cluster.ray("job", "submit", *options, "--", *entrypoint.split(), **environment)


def test_a_job_is_followed_and_leaves_its_results(cluster: Cluster, tmp_path: Path) -> None:
    result = submit(cluster, f"python -m pipelines.cli preprocess --root {tmp_path} {SMALL}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4/4 sequences" in result.stdout
    assert "preprocess  done in" in result.stdout
    (folder,) = (tmp_path / "preprocess").iterdir()
    assert len(FrameIndex.open(load_artifact(folder, Shards).folder)) == 24


def test_a_wrong_token_is_refused(cluster: Cluster) -> None:
    result = submit(cluster, "python -V", RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert result.returncode != 0
    assert "Invalid authentication token" in result.stdout + result.stderr


def test_bad_input_fails_the_job_with_its_message(cluster: Cluster, tmp_path: Path) -> None:
    result = submit(cluster, f"python -m pipelines.cli preprocess --root {tmp_path} --co3d-root {tmp_path}/none")
    assert result.returncode != 0
    assert "viewdiff: error: data set" in result.stdout
