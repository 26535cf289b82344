"""Stage synth: a CO3Dv2 dataset of procedural objects, for machines that have no captures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.spine.runtime import RuntimeConfig
from preprocessing.synthetic.config import SyntheticConfig
from preprocessing.synthetic.dataset import write_dataset


def write_synthetic(
    config: SyntheticConfig, inputs: Mapping[str, Any], folder: Path, runtime: RuntimeConfig
) -> dict[str, Any]:
    """Write the dataset into `folder`, going on where an earlier run stopped; returns its counts."""
    counts = write_dataset(config, folder, num_processes=runtime.num_workers)
    return {"categories": list(config.categories), **counts}
