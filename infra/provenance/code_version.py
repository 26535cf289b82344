"""Which version of this code runs, and of the packages that its results depend on."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from infra.log import get_logger

COMMIT_VARIABLE = "VIEWDIFF_COMMIT"

_PACKAGES = (
    "torch", "triton", "numpy", "diffusers", "transformers", "peft", "safetensors", "ray", "deepspeed", "mlflow",
    "pyarrow", "webdataset",
)  # fmt: skip


def git_commit() -> str | None:
    """The checkout's commit, with `+` when files differ from it. Where there is no git, as in an image or in a job's
    copy, what VIEWDIFF_COMMIT says; None without either, which is said once.
    """
    commit = _described() or os.environ.get(COMMIT_VARIABLE, "").strip()
    if not commit:
        _tell_that_unknown()
    return commit or None


def package_versions() -> dict[str, str]:
    """Python's version and those of the packages, by name, and CUDA's where PyTorch is built for it."""
    import torch  # takes seconds

    versions = {"python": platform.python_version()}
    if torch.version.cuda is not None:
        versions["cuda"] = torch.version.cuda
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # Triton, where there are no GPUs
            continue
    return versions


def _described() -> str:
    folder = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:  # no git on this machine
        return ""


@functools.cache
def _tell_that_unknown() -> None:
    get_logger("checkout").warning(
        "no commit is recorded with the results: this is no git checkout, and %s is not set; set it to the commit that "
        "runs (docs/cluster.md)",
        COMMIT_VARIABLE,
    )
