"""Every preset for Stable Diffusion on every narrow base model, by `viewdiff run`, from captures to the registry:
`python -m benchmarks.bench_presets FOLDER`.

Pictures, latents, types and precision are the true ones; channels, steps, views, samples and voxels are fewer (see
tests/integration/test_stable_diffusion.py, which runs a part of this).
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.record import REPOSITORY, table, write
from infra.tracking.registry import Registry
from pipelines.settings.presets import PRESETS
from pipelines.spine.runtime import RuntimeConfig
from tests.integration.test_stable_diffusion import options
from tests.support.narrow_models import MODELS

NAMES = [name for name, preset in PRESETS.items() if preset().base.source is not None]


def main() -> None:
    """Run, print, write docs/benchmarks/<date>-presets.{json,md}."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    root = Path(sys.argv[1]).absolute()
    root.mkdir(parents=True)
    _run(root, "captions", NAMES[0], next(iter(MODELS)))  # captures and shards, which all share
    seconds = {(name, kind): _run(root, "run", name, kind) for kind in MODELS for name in NAMES}
    rows = [[name, *(f"{seconds[name, kind]:.0f}" for kind in MODELS)] for name in NAMES]
    text = (
        "Seconds from shards to the registry, narrow base models (random weights) at 256 × 256 pixels, two training "
        "steps of one sample of three views in bfloat16, an eighth of each preset's voxels along a side. A base "
        "model's first row includes reading it and caching latents, with prior images at its own 512 or 768 pixels.\n\n"
    ) + table(["preset", *(f"Stable Diffusion {kind}" for kind in MODELS)], rows)
    results = [{"preset": name, "base": kind, "seconds": value} for (name, kind), value in seconds.items()]
    write("presets", title="Presets on base models", text=text, results={"results": results})


def _run(root: Path, command: str, preset: str, kind: str) -> float:
    """Seconds of a command; the model must be in the registry after `run`."""
    model_name, started = f"{preset}-{kind}".replace(".", "-"), time.monotonic()  # MLflow takes no dots
    words = [*options(root, preset, kind), "--register.model-name", model_name]
    subprocess.run([sys.executable, "-m", "pipelines.cli", command, *words], cwd=REPOSITORY, check=True)
    seconds = time.monotonic() - started
    if command == "run" and Registry(RuntimeConfig(root=str(root)).tracking, model_name).champion() is None:
        raise SystemExit(f"{model_name} is not in the registry")
    return seconds


if __name__ == "__main__":
    main()
