"""What a finished run tells the person who waited for it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.addresses import shown_address, sqlite_path
from pipelines.evaluation.scoring import METHODS
from pipelines.spine.artifacts import Artifact, Checkpoint, EvaluationReport, ModelVersion, Report
from pipelines.spine.runtime import RuntimeConfig


def print_summary(results: Mapping[str, Artifact], runtime: RuntimeConfig) -> None:
    """Print the scores, where report, records and model are, and the command that opens MLflow's page."""
    report, checkpoint, evaluation = results["report"], results["train"], results["evaluate"]
    version = results["register"]
    assert isinstance(report, Report)
    assert isinstance(checkpoint, Checkpoint)
    assert isinstance(evaluation, EvaluationReport)
    assert isinstance(version, ModelVersion)
    print()
    print("\n".join(score_lines(json.loads(evaluation.summary_path.read_text()))))
    print()
    print(f"report     {report.html_path}")
    print(f"model      {checkpoint.model_dir}")
    print(f"version    {version.facts['model_name']} {version.facts['version']}, {version.facts['alias']}")
    print(f"MLflow     {shown_address(runtime.tracking)}")
    if sqlite_path(runtime.tracking) is not None:
        mlflow = str(Path(sys.executable).with_name("mlflow"))  # found without the environment being activated
        print("its page  ", shlex.join([mlflow, "ui", "--backend-store-uri", runtime.tracking, "--port", "5000"]))


def score_lines(summary: Mapping[str, Any]) -> list[str]:
    """The means of an evaluation as lines of a table."""
    title = f"{summary['num_objects']} held-out objects from one view"
    lines = [f"{title:<36}{'PSNR':>9}{'SSIM':>8}"]
    for suffix, method in METHODS.items():
        lines.append(f"  {method:<34}{summary[f'psnr{suffix}']:>6.2f} dB{summary[f'ssim{suffix}']:>8.3f}")
    for baseline, name in (("copy", "the copied view"), ("mean", "the mean image")):
        gain, error = summary[f"psnr_gain_{baseline}"], summary[f"psnr_gain_{baseline}_error"]
        lines.append(f"  {'ahead of' if gain > 0 else 'behind'} {name} by {abs(gain):.2f} ± {error:.2f} dB")
    return lines
