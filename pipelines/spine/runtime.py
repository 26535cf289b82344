"""Where and with what a pipeline runs. Never part of a fingerprint: the same work elsewhere is the same work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from infra.addresses import require_name, sqlite_address
from infra.errors import UserError
from infra.storage.files import StoragePath, open_path

DATABASE_NAME = "mlflow.db"


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Place, machines and records of a run."""

    root: str = "runs/demo"
    """Folder below which everything is written."""
    co3d_root: str | None = None
    """Folder or s3:// address of captures in CO3Dv2 layout; without it the preset's synthetic data set is written and
    used."""
    data_root: str | None = None
    """Folder or s3:// address below which shards, latents and a copy of each training's newest checkpoint are kept;
    without it shards and latents are below the root."""
    tracking_uri: str | None = None
    """MLflow server or database; without it an SQLite database below the root."""
    run_name: str | None = None
    """Name of a new training in MLflow; without it the beginning of its fingerprint."""
    num_workers: int = 2
    """Worker processes for preprocessing, training and serving."""
    min_workers: int | None = None
    """The fewest workers that training continues with while nodes are missing; without it training waits for all
    workers."""
    max_failures: int = 3
    """How many times a training starts its workers again after it lost one; then it gives up."""
    num_loaders: int = 0
    """Processes per training worker that read batches ahead; with 0 the worker reads a batch when it needs it."""
    use_gpu: bool = False
    """Give each worker one GPU."""

    def __post_init__(self) -> None:
        if not self.root:
            raise UserError("--root is empty: name a folder")
        for address in (self.data_root, self.co3d_root):
            if address is not None:
                open_path(address)
        for name, value, least in (
            ("--num-workers", self.num_workers, 1),
            ("--num-loaders", self.num_loaders, 0),
            ("--max-failures", self.max_failures, 0),
        ):
            if value < least:
                raise UserError(f"{name} {value}: must be at least {least}")
        if self.run_name is not None:
            require_name("--run-name", self.run_name)
        if self.min_workers is not None and not 1 <= self.min_workers <= self.num_workers:
            raise UserError(f"--min-workers {self.min_workers}: must be between 1 and --num-workers {self.num_workers}")

    @property
    def root_dir(self) -> Path:
        """The root as an absolute path, because workers have other working directories."""
        return Path(self.root).expanduser().absolute()

    @property
    def data_dir(self) -> StoragePath:
        """Where shards, latents and copies of checkpoints are kept."""
        return self.root_dir if self.data_root is None else open_path(self.data_root).absolute()

    @property
    def tracking(self) -> str:
        """URI of the MLflow store."""
        return self.tracking_uri or sqlite_address(self.root_dir / DATABASE_NAME)


def check_own_gpu() -> None:
    """Check that there is a GPU for what computes in this process.

    Raises:
        UserError: there is none.
    """
    if not num_gpus():
        raise UserError(
            "--use-gpu: this command computes in its own process, where PyTorch finds no GPU; run it on a machine that "
            "has one, drop --use-gpu, or install a CUDA build of PyTorch"
        )


def num_gpus() -> int:
    import torch  # takes seconds

    return torch.cuda.device_count()
