"""Freed memory is kept for the next picture."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

# Page faults of the last ten of twenty pictures of 8 MB, in a process of its own.
PICTURES = """
import resource, sys
import numpy as np
from infra.cluster.malloc import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for number in range(20):
    if number == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    first, second = (np.ones(8_000_000, np.uint8) for _ in range(2))
    del first, second
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs the GNU C library")
def test_pictures_after_the_first_cost_no_new_pages() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", PICTURES, how], capture_output=True, check=True).stdout)
        for how in ("keep", "give back")
    }
    # How many pages a picture has depends on the machine: 2,000 of 4 kB, or some of them in huge pages.
    assert faults["keep"] * 10 < faults["give back"]
