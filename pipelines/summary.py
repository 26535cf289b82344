"""What a finished run tells the person who waited for it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from infra.tracking import SQLITE_PREFIX
from pipelines.artifacts import Artifact, Checkpoint, EvaluationReport, Report
from pipelines.runtime import RuntimeConfig


def print_summary(results: Mapping[str, Artifact], runtime: RuntimeConfig) -> None:
    """Print where report, records and model are, and the scores."""
    report, checkpoint, evaluation = results["report"], results["train"], results["evaluate"]
    assert isinstance(report, Report)
    assert isinstance(checkpoint, Checkpoint)
    assert isinstance(evaluation, EvaluationReport)
    print()
    for name, value in json.loads(evaluation.summary_path.read_text()).items():
        print(f"  {name:<24} {value:.3f}" if isinstance(value, float) else f"  {name:<24} {value}")
    print()
    print(f"report     {report.html_path}")
    print(f"model      {checkpoint.model_dir}")
    print(f"MLflow     {runtime.tracking}")
    if runtime.tracking.startswith(SQLITE_PREFIX):
        print(f"its page   mlflow ui --backend-store-uri {runtime.tracking} --port 5000")
