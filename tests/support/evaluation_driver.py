"""An evaluation in a process of its own: `python -m tests.support.evaluation_driver ROOT FOLDER NUM_STEPS`, on the
cluster at RAY_ADDRESS. ROOT is what `write_evaluation_inputs` wrote, its artifacts are found there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from infra.console import run_command
from model.config import SamplingConfig
from pipelines.settings.run import EvaluateConfig
from pipelines.spine.artifacts import Artifact, BaseFolder, Captions, Checkpoint, Shards, load_artifact
from pipelines.spine.runtime import RuntimeConfig
from tests.support.evaluation_inputs import HELD_OUT

KINDS = {
    "shards": ("preprocess", Shards),
    "captions": ("captions", Captions),
    "base": ("base", BaseFolder),
    "checkpoint": ("train", Checkpoint),
}


def inputs_below(root: Path) -> dict[str, Artifact]:
    """The stage's inputs by role."""
    return {role: load_artifact(root / stage / f"{stage}-0", kind) for role, (stage, kind) in KINDS.items()}


def config(*, num_steps: int, split: str = HELD_OUT, **settings: int) -> EvaluateConfig:
    """Few small objects of that many denoising steps."""
    return EvaluateConfig(
        sampling=SamplingConfig(num_steps=num_steps, guidance_scale=2.0),
        split=split,
        num_objects=2,
        num_text_objects=2,
        num_views=4,
        **settings,
    )


def main() -> None:
    """Evaluate."""
    from pipelines.stages.evaluate import evaluate

    root, folder, num_steps = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    folder.mkdir(exist_ok=True)
    runtime = RuntimeConfig(root=str(folder.parent), num_workers=1)
    settings = config(num_steps=num_steps, split="train", max_batch_size=1)
    run_command("driver", lambda: evaluate(settings, inputs_below(root), folder, runtime))


if __name__ == "__main__":
    main()
