"""Where and with what a pipeline runs. Never part of a fingerprint: the same work elsewhere is the same work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from infra.errors import UserError

DATABASE_NAME = "mlflow.db"


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Place, machines and records of a run."""

    root: str = "runs/demo"
    """Folder that everything is written below."""
    co3d_root: str | None = None
    """Folder of captures in CO3Dv2 layout; without it the preset's synthetic data set is written and used."""
    tracking_uri: str | None = None
    """MLflow server or database; without it an SQLite database below the root."""
    num_workers: int = 2
    """Worker processes for preprocessing, training and serving."""
    use_gpu: bool = False
    """One GPU per worker."""

    def __post_init__(self) -> None:
        if not self.root:
            raise UserError("--root is empty: name a folder")
        if self.num_workers < 1:
            raise UserError(f"--num-workers {self.num_workers}: must be at least 1")

    @property
    def root_dir(self) -> Path:
        """The root as an absolute path, because workers have other working directories."""
        return Path(self.root).expanduser().absolute()

    @property
    def tracking(self) -> str:
        """URI of the MLflow store."""
        return self.tracking_uri or f"sqlite:///{self.root_dir / DATABASE_NAME}"
