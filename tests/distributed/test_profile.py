"""`viewdiff profile` on a training of milliseconds: its numbers are those of the profiled steps."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.commands.profile_training import TRACE_NAME, profile_job
from pipelines.settings.commands import ProfileConfig
from pipelines.training.job import TrainJob
from pipelines.training.loop import PHASES
from pipelines.training.profile_table import OUTSIDE, OperatorRow, describe
from tests.distributed.launch import TIMEOUT_SECONDS, run_distributed
from tests.support.training_inputs import train_config, write_inputs

pytestmark = pytest.mark.timeout(3 * TIMEOUT_SECONDS)
STEPS = 2


def run(job: TrainJob) -> dict[str, Any]:
    settings = ProfileConfig(warmup_steps=1, profiled_steps=STEPS)
    rows, phases = profile_job(job, settings, torch.device("cpu"))
    return {"rows": [list(row) for row in rows], "phases": phases}


def test_a_profile_is_of_the_profiled_steps(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "inputs")
    config = train_config(batch_size=4, micro_batch_size=2)
    folders = {f"{name}_dir": inputs[name].folder for name in ("shards", "captions", "latents", "base")}
    job = TrainJob(config=config, **folders, initial_dir=None, folder=tmp_path, num_loaders=0)
    [result] = run_distributed(run, 1, job)
    rows = [OperatorRow(*row) for row in result["rows"]]
    assert [row.seconds for row in rows] == sorted((row.seconds for row in rows), reverse=True)
    assert all(row.seconds <= row.whole_seconds for row in rows)
    assert sum(row.share for row in rows) == pytest.approx(1)
    calls = {row.name: row.calls for row in rows}
    # Two micro-batches of two parts in each step: one projection layer is marched through in each.
    assert calls["viewdiff::march"] == STEPS * 4
    assert calls["viewdiff::march_backward"] == STEPS * 4
    assert set(result["phases"]) == set(PHASES)
    assert all(seconds > 0 for seconds in result["phases"].values())
    names = {
        event.get("name") for event in json.loads(gzip.decompress((tmp_path / TRACE_NAME).read_bytes()))["traceEvents"]
    }
    assert {"forward", "backward", "optimizer", "viewdiff::march"} <= names
    text = describe(rows, result["phases"], num_steps=STEPS)
    assert rows[0].name[:39] in text
    assert OUTSIDE in calls
