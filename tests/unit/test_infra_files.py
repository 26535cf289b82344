"""The cluster files are valid, ask for a token, and run commands that this command line has."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.arguments import parse_run
from pipelines.cli import COMMANDS

INFRA = Path(__file__).resolve().parents[2] / "infra"
FILES = ("ray/cluster.yaml", "k8s/rayjob.yaml", "k8s/retrain-cronjob.yaml")


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((INFRA / name).read_text())


def commands(name: str) -> list[list[str]]:
    """Arguments of every `python -m pipelines.cli` in a file, comments included."""
    text = re.sub(r"\\?\n\s*#?\s*", " ", (INFRA / name).read_text())  # commands go over several lines
    found = re.findall(r"python -m pipelines\.cli (.*?--use-gpu)", text)  # which all of them end with
    return [shlex.split(command) for command in found]


@pytest.mark.parametrize("name", FILES)
def test_its_commands_are_accepted(name: str) -> None:
    found = commands(name)
    assert found
    for command, *arguments in found:
        assert command in COMMANDS
        parsed = parse_run(command, arguments, description="")
        assert parsed.runtime.use_gpu  # the last option was reached, so the whole command was read
        assert parsed.runtime.co3d_root == "/data/co3d"


def test_a_wrong_option_would_be_noticed() -> None:
    with pytest.raises(Exception, match="unknown option '--co3d-rot'"):
        parse_run("run", ["--co3d-rot", "/data/co3d"], description="")


def test_launcher_has_a_token_on_every_machine() -> None:
    cluster = load("ray/cluster.yaml")
    assert "-e RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert "~/.ray/auth_token" in cluster["file_mounts"]
    head = " ".join(cluster["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head  # the jobs API is reached through ssh only
    assert "$RAY_HEAD_IP" in " ".join(cluster["worker_start_ray_commands"])


def test_ray_job() -> None:
    job = load("k8s/rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"
    pins = (INFRA.parent / "constraints.txt").read_text().splitlines()
    assert f"ray=={cluster['rayVersion']}" in pins
    workers = cluster["workerGroupSpecs"][0]
    assert f"--num-workers {workers['replicas']} " in spec["entrypoint"]
    for group in (cluster["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_cron_job_never_overlaps() -> None:
    job = load("k8s/retrain-cronjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    assert len(job["spec"]["schedule"].split()) == 5
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    [container] = pod["containers"]
    environment = {variable["name"]: variable for variable in container["env"]}
    assert environment["RAY_AUTH_MODE"]["value"] == "token"
    assert "secretKeyRef" in environment["RAY_AUTH_TOKEN"]["valueFrom"]  # never in the file itself
    assert "--submission-id" in container["args"][0]


def test_image_takes_pinned_versions_and_is_not_root() -> None:
    recipe = (INFRA / "docker" / "Dockerfile").read_text()
    assert "--constraint constraints.txt" in recipe
    assert "\nUSER ray\n" in recipe
