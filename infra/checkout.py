"""Which version of this code runs, and of the packages that its results depend on."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

_PACKAGES = ("torch", "diffusers", "transformers", "ray", "deepspeed", "mlflow", "pyarrow", "webdataset")


def git_commit() -> str | None:
    """The checkout's commit, with `+` when files differ from it; None outside one, as in a submitted job's copy."""
    folder = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return None
    return result.stdout.strip() or None


def package_versions() -> dict[str, str]:
    """Python's version and those of the packages, by name."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES}
