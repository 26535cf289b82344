"""What the room of imports does to a process when it is loaded: nothing that other code would notice."""

from __future__ import annotations

import signal
import subprocess
import sys

from tests.support.paths import CHECKOUT

PROGRAM = """
import os, signal
signal.signal(signal.SIGTERM, lambda *_: print("mine", flush=True))
import preprocessing.importing.solving.cameras
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_sigterm_stays_whose_it_was() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "mine\n", "")


def test_without_a_handler_sigterm_ends_the_process_without_a_word() -> None:
    program = PROGRAM.replace('lambda *_: print("mine", flush=True)', "signal.SIG_DFL")
    ended = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGTERM, "", "")
