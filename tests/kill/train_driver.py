"""The training that is killed, with a Ray of its own: `python -m tests.kill.train_driver INPUTS FOLDER`.

Exit codes as the command line's.
"""

from __future__ import annotations

import sys
from pathlib import Path

from infra.console import run_command
from pipelines.spine.artifacts import Artifact
from pipelines.spine.runtime import RuntimeConfig
from pipelines.stages.train import train
from tests.support.training_inputs import train_config

NUM_STEPS, NUM_WORKERS = 200, 2
CONFIG = train_config(
    num_steps=NUM_STEPS, checkpoint_every_steps=10, preview_every_steps=50, validation_samples=4, average_decay=0.99
)


def main() -> None:
    """Train, or say why not."""
    inputs, folder = map(Path, sys.argv[1:])
    roles = {
        name: Artifact(fingerprint=name, folder=inputs / name) for name in ("shards", "captions", "latents", "base")
    }
    runtime = RuntimeConfig(root=str(folder.parent), num_workers=NUM_WORKERS)
    run_command("driver", lambda: train(CONFIG, roles, folder, runtime))


if __name__ == "__main__":
    main()
