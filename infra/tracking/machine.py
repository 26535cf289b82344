"""How busy this machine is, as MLflow measures it."""

from __future__ import annotations

import logging

import infra.tracking.settings  # noqa: F401

# isort: split
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from infra.tracking.run import Run

PREFIX = "system/"  # by which MLflow's page knows these metrics


class SystemMetrics:
    """Load of processors, memory, disk and network, and of the GPUs where NVIDIA's or AMD's library is installed.

    Only the library's collectors are used: its own thread stops for good at the first request that fails.
    """

    def __init__(self, run: Run) -> None:
        logging.getLogger("mlflow.system_metrics.system_metrics_monitor").setLevel(logging.WARNING)
        self._monitor = SystemMetricsMonitor(run.id, tracking_uri=run.client.tracking_uri)

    def sample(self) -> dict[str, float]:
        """The numbers of this moment, by name; those of network traffic count from the first sample."""
        self._monitor.collect_metrics()
        sample = {PREFIX + name: float(value) for name, value in self._monitor.aggregate_metrics().items()}
        for monitor in self._monitor.monitors:
            monitor.clear_metrics()
        return sample
