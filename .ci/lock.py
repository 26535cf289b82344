"""The lock files: pinned versions with the digests of every file that the package index has of them for Python 3.11.

PyTorch is in neither: which build of it is right depends on the machine, and each has other files and other needs.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from packaging.utils import parse_wheel_filename
from packaging.version import Version
from piptools.repositories import PyPIRepository

NOT_LOCKED = ("torch",)
BUILD_TOOLS = ("pip==26.3", "setuptools==80.9.0")  # which builds wheels itself
PYTHON = (3, 11)


def main() -> None:
    """Write requirements.lock, of what the given file pins, and requirements-build.lock beside it."""
    source = Path(sys.argv[1])
    pins = [pin for pin in source.read_text().split() if pin.partition("==")[0] not in NOT_LOCKED]
    for name, chosen in (("requirements-build.lock", BUILD_TOOLS), ("requirements.lock", pins)):
        source.with_name(name).write_text(f"# Written by .ci/lock.\n{''.join(entries(chosen))}")


def entries(pins: Iterable[str]) -> Iterable[str]:
    """The lines of each pin. One that has files for Linux alone is for Linux alone."""
    repository = PyPIRepository([], cache_dir=tempfile.mkdtemp())
    for pin in pins:
        name, _, version = pin.partition("==")
        with repository.allow_all_wheels():
            found = repository.find_all_candidates(name)
        # Files on this machine's disk are not what others get.
        links = [item.link for item in found if Version(str(item.version)) == Version(version)]
        links = [link for link in links if not link.is_file and fits(link.filename)]
        digests = sorted({link.hash for link in links if link.hash_name == "sha256"})
        if not digests:
            raise SystemExit(f"{pin}: the package index has no file of it with a SHA-256")
        marker = " ; sys_platform == 'linux'" if all("linux" in link.filename for link in links) else ""
        yield pin + marker + "".join(f" \\\n    --hash=sha256:{digest}" for digest in digests) + "\n"


def fits(filename: str) -> bool:
    """Whether a file is for this Python: an archive of the source, or a wheel."""
    if not filename.endswith(".whl"):
        return True
    return any(_runs(tag.interpreter, tag.abi) for tag in parse_wheel_filename(filename)[3])


def _runs(interpreter: str, abi: str) -> bool:
    match = re.fullmatch(r"(py|cp)(\d)(\d*)", interpreter)
    if match is None:  # another Python than CPython
        return False
    version = (int(match[2]), int(match[3] or 0))
    if match[1] == "py" or abi == "abi3":
        return version[0] == PYTHON[0] and version <= PYTHON
    return version == PYTHON


if __name__ == "__main__":
    main()
