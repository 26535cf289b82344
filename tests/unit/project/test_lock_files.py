"""The lock files hold every pinned version with digests, and are what `make` and the image install from."""

from __future__ import annotations

import re
import tomllib

from tests.support.paths import CHECKOUT

NOT_LOCKED = {"torch"}  # whose builds differ from machine to machine


def locked(name: str) -> dict[str, list[str]]:
    """The digests of each pin, by "name==version"."""
    text = (CHECKOUT / name).read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    found = {}
    for line in lines:
        pin, _, rest = line.partition(" ")
        rest = rest.replace("; sys_platform == 'linux'", "")
        assert re.fullmatch(r"(\s*--hash=sha256:[0-9a-f]{64})+\s*", rest), line
        found[pin] = re.findall(r"[0-9a-f]{64}", rest)
    return found


def test_every_pin_is_locked() -> None:
    pins = (CHECKOUT / "constraints.txt").read_text().split()
    expected = {pin for pin in pins if pin.partition("==")[0] not in NOT_LOCKED}
    assert locked("requirements.lock").keys() == expected
    assert {pin.partition("==")[0] for pin in locked("requirements-build.lock")} == {"pip", "setuptools"}


def test_what_the_project_asks_for_is_locked_in_its_version() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(item for group in project["optional-dependencies"].values() for item in group)]
    pins = {re.sub(r"\[.*\]", "", item).partition(";")[0].strip() for item in asked}
    asked_for = {pin.lower() for pin in pins if pin.partition("==")[0] not in NOT_LOCKED}
    assert asked_for <= {pin.lower() for pin in locked("requirements.lock")}


def test_files_of_other_machines_are_allowed_too() -> None:
    """A package with compiled parts has a file for each kind of machine, another one's source at least."""
    digests = locked("requirements.lock")
    for name in ("numpy", "pyarrow", "safetensors", "pillow"):
        [of_package] = [found for pin, found in digests.items() if pin.startswith(f"{name}==")]
        assert len(of_package) >= 4, name
    everything = [digest for found in digests.values() for digest in found]
    assert len(everything) == len(set(everything))


def test_make_installs_nothing_else() -> None:
    recipe = (CHECKOUT / "Makefile").read_text()
    installed = re.findall(r"\$\(BIN\)/pip install (.*)", recipe)
    assert [line.split()[-1] for line in installed] == ["requirements-build.lock", "requirements.lock", "torch", "."]
    assert all("--require-hashes" in line for line in installed[:2])
