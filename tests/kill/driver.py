"""The command that is killed, with a Ray of its own: `python -m tests.kill.driver CAPTURES FOLDER`.

Exit codes as the command line's: 0 done, 2 a message for a person, 1 a defect.
"""

from __future__ import annotations

import sys
from pathlib import Path

from infra.errors import UserError
from pipelines.artifacts import RawDataset
from pipelines.preprocess import preprocess
from pipelines.runtime import RuntimeConfig
from preprocessing.config import PreprocessConfig

SEQUENCES_PER_SHARD = 5
# Large enough that a shard takes longer to write than Ray takes between two: kills shall meet shards in work.
CONFIG = PreprocessConfig(image_size=128, sequences_per_shard=SEQUENCES_PER_SHARD, minimum_frames=5)


def main() -> None:
    """Preprocess, or say why not."""
    captures, folder = map(Path, sys.argv[1:])
    try:
        preprocess(CONFIG, {"raw": RawDataset(fingerprint="raw", folder=captures)}, folder, RuntimeConfig())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
