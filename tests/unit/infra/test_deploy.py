"""The cluster files are valid, ask for a token, and run commands that this command line has."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

from infra.provenance.code_version import COMMIT_VARIABLE
from infra.system.stop_request import SECONDS_TO_SAVE
from pipelines.cli.arguments import parse_run
from pipelines.cli.main import COMMANDS
from tests.support.paths import CHECKOUT

DEPLOY = CHECKOUT / "infra" / "deploy"
FILES = ("ray/cluster.yaml", "k8s/rayjob.yaml", "k8s/retrain-cronjob.yaml")


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / name).read_text())


def commands(name: str) -> list[list[str]]:
    """Arguments of every `python -m pipelines.cli` in a file, comments included."""
    text = re.sub(r"\\?\n\s*#?\s*", " ", (DEPLOY / name).read_text())  # commands go over several lines
    found = re.findall(r"python -m pipelines\.cli (.*?--use-gpu)", text)  # which all of them end with
    return [shlex.split(command) for command in found]


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container["env"]}


@pytest.mark.parametrize("name", FILES)
def test_its_commands_are_accepted(name: str) -> None:
    found = commands(name)
    assert found
    for command, *arguments in found:
        assert command in COMMANDS
        parsed = parse_run(command, arguments, description="")
        assert parsed.runtime.use_gpu  # the last option was reached, so the whole command was read
        assert parsed.runtime.co3d_root == "/data/co3d"
        assert parsed.runtime.tracking_uri is not None  # a database on a file system in common may be damaged
        assert parsed.runtime.num_workers == 16


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
    pins = (CHECKOUT / "constraints.txt").read_text().splitlines()
    assert f"ray=={cluster['rayVersion']}" in pins
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"][0]
    [limits] = [container["resources"]["limits"] for container in workers["template"]["spec"]["containers"]]
    num_gpus = workers["replicas"] * int(limits["nvidia.com/gpu"])
    assert f"--num-workers {num_gpus} " in spec["entrypoint"]
    for group in (head, workers):
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
        assert environment(container)["VIEWDIFF_CACHE"] == mounts["cache"]
        assert container["envFrom"] == [{"secretRef": {"name": "viewdiff-secrets"}}]


def test_a_stopped_job_has_time_for_a_checkpoint() -> None:
    """Ray kills the job after the training gave up waiting, the head ends after that, and its pod last."""
    cluster = load("k8s/rayjob.yaml")["spec"]["rayClusterSpec"]
    pod = cluster["headGroupSpec"]["template"]["spec"]
    head = environment(pod["containers"][0])
    stop, drain = (int(head[f"RAY_{name}_S"]) for name in ("JOB_STOP_WAIT_TIME", "GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT"))
    assert SECONDS_TO_SAVE < stop < drain < pod["terminationGracePeriodSeconds"]
    assert f"-e RAY_JOB_STOP_WAIT_TIME_S={stop}" in load("ray/cluster.yaml")["docker"]["run_options"]
    workers = cluster["workerGroupSpecs"][0]["template"]["spec"]
    announced = int(environment(workers["containers"][0])["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert stop < announced < workers["terminationGracePeriodSeconds"]


def test_cron_job_never_overlaps() -> None:
    job = load("k8s/retrain-cronjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    assert len(job["spec"]["schedule"].split()) == 5
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    [container] = pod["containers"]
    variables = {variable["name"]: variable for variable in container["env"]}
    assert variables["RAY_AUTH_MODE"]["value"] == "token"
    assert "secretKeyRef" in variables["RAY_AUTH_TOKEN"]["valueFrom"]  # never in the file itself
    assert "--submission-id" in container["args"][0]


@pytest.mark.parametrize("name", ["ray/cluster.yaml", "k8s/retrain-cronjob.yaml"])
def test_a_submission_says_its_commit(name: str) -> None:
    text = re.sub(r"\s*\n#?\s*", " ", (DEPLOY / name).read_text())
    found = re.search(r'--runtime-env-json ("(?:[^"\\]|\\.)*")', text)
    assert found
    [value] = shlex.split(found[1])
    assert set(json.loads(value)["env_vars"]) == {COMMIT_VARIABLE}


def test_image_takes_pinned_versions_and_is_not_root() -> None:
    recipe = (DEPLOY / "docker" / "Dockerfile").read_text()
    assert f"ARG {COMMIT_VARIABLE}\n" in recipe
    installed = re.findall(r"pip install [^&\n]*", recipe.replace("\\\n", ""))
    assert [line.split()[-1] for line in installed] == ["requirements-build.lock", "requirements.lock", "torch", "."]
    assert all("--require-hashes" in line for line in installed[:2])
    assert "--constraint constraints.txt" in installed[2]
    assert "--no-deps" in installed[3]
    assert "\nUSER ray\n" in recipe


def secret_files() -> set[str]:
    """Names of the files that the cluster files and the documentation have a person write secrets into."""
    paths = [
        *(path for path in DEPLOY.rglob("*") if path.is_file()),
        *CHECKOUT.glob("*.md"),
        *CHECKOUT.rglob("docs/**/*.md"),
    ]
    given = r"--from-(?:env-)?file=(?:\S+=)?([\w./~-]+)"
    telling = r"\b([\w.-]*(?:secret|token|credential|password)[\w-]*\.(?:env|json|yaml|txt))\b"
    texts = [path.read_text(encoding="utf-8") for path in paths if path.suffix != ".pyc"]
    return {name for text in texts for pattern in (given, telling) for name in re.findall(pattern, text)}


def test_files_with_secrets_stay_out_of_commits_images_and_jobs(tmp_path: Path) -> None:
    """A submitted working folder leaves out what .gitignore names, an image what .dockerignore names."""
    names = secret_files()
    assert "secrets.env" in names
    ignored = (CHECKOUT / ".dockerignore").read_text().splitlines()
    for name in names:
        found = subprocess.run(["git", "check-ignore", "--quiet", name], cwd=CHECKOUT, check=False)
        assert found.returncode == 0, f".gitignore lacks {name}"
        assert name in ignored or f"**/{name}" in ignored, f".dockerignore lacks {name}"
    (tmp_path / ".gitignore").write_bytes((CHECKOUT / ".gitignore").read_bytes())
    for name in (*names, "kept.py"):
        (tmp_path / name).touch()
    excluded = get_excludes_from_ignore_files(tmp_path, include_gitignore=True)
    kept = [path.name for path in tmp_path.iterdir() if not any(excludes(path) for excludes in excluded)]
    assert "kept.py" in kept
    assert not names & set(kept)
