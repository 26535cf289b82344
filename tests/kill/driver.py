"""The command that is killed, with a Ray of its own: `python -m tests.kill.driver CAPTURES FOLDER`.

Exit codes as the command line's.
"""

from __future__ import annotations

import sys
from pathlib import Path

from infra.console import run_command
from pipelines.spine.artifacts import RawDataset
from pipelines.spine.runtime import RuntimeConfig
from pipelines.stages.preprocess import preprocess
from preprocessing.config import PreprocessConfig

SEQUENCES_PER_SHARD = 5
# Large enough that a shard takes longer to write than Ray takes between two: kills shall meet shards in work.
CONFIG = PreprocessConfig(image_size=128, sequences_per_shard=SEQUENCES_PER_SHARD, minimum_frames=5)


def main() -> None:
    """Preprocess, or say why not."""
    captures, folder = map(Path, sys.argv[1:])
    raw = RawDataset(fingerprint="raw", folder=captures)
    run_command("driver", lambda: preprocess(CONFIG, {"raw": raw}, folder, RuntimeConfig()))


if __name__ == "__main__":
    main()
