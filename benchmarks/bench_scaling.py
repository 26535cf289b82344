"""What training on many GPUs is projected from, measured: `python -m benchmarks.bench_scaling`.

The bytes that a training step gives to collectives, the loader's rate, and all-reduces of 2 to 4 processes, which the
formula is checked with. The projection is benchmarks/scaling_page.py's, and is made again without measuring.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn

from benchmarks import scaling_page
from benchmarks.bench_loader import loaded, open_batches, rate, written_data
from benchmarks.record import FOLDER, facts
from infra.engine.config import EngineConfig
from infra.engine.engine import Engine
from tests.distributed.launch import run_distributed

SIZES = tuple(1 << power for power in range(16, 30, 2))  # bytes: 64 kB to 256 MB; a training's buckets have 200 MB
PROCESSES, REPETITIONS = (2, 3, 4), 20
ROUNDS = {"all_reduce": 2, "reduce_scatter_tensor": 1, "all_gather_into_tensor": 1, "reduce": 1}


def count_bytes(zero_stage: int) -> torch.Tensor:
    """On each rank: bytes per parameter given to collectives, [backward or step, rounds - 1]."""
    counted: Counter[int] = Counter()

    def counting(name: str, call: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            counted[ROUNDS[name]] += max(tensor.numel() * tensor.element_size() for tensor in tensors)
            return call(*args, **kwargs)

        return wrapped

    patches = [patch.object(dist, name, counting(name, getattr(dist, name))) for name in ROUNDS]
    for each in patches:
        each.start()
    module = nn.Sequential(*(nn.Linear(256, 256) for _ in range(8)))
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    config = EngineConfig(zero_stage=zero_stage)
    engine = Engine(module, {"all": list(module.parameters())}, config, num_steps=2, device=torch.device("cpu"))
    found = torch.zeros(2, 2, dtype=torch.float64)
    for part in (0, 1):
        counted.clear()
        if part:
            engine.step(0, torch.zeros(1, dtype=torch.float64))
        else:
            engine.backward(engine.model(torch.ones(1, 256)).sum())
        for rounds, num_bytes in counted.items():
            found[part, rounds - 1] = num_bytes / num_parameters
    for each in patches:
        each.stop()
    return found


def time_all_reduces() -> list[float]:
    """On each rank: the fastest of many all-reduces of each of `SIZES`, seconds. The fastest, because other programs
    on the machine only ever make it slower.
    """
    seconds = []
    for size in SIZES:
        tensor, taken = torch.ones(size // 4), []
        for _ in range(REPETITIONS):
            dist.barrier()
            started = time.perf_counter()
            dist.all_reduce(tensor)
            taken.append(time.perf_counter() - started)
        seconds.append(min(taken))
    return seconds


def measure_loader() -> float:
    """Samples a second of one process, with embeddings and a prior image each."""
    torch.set_num_threads(1)
    with written_data() as folder:
        return max(rate(loaded(open_batches(folder))) for _ in range(3))


def main() -> None:
    """Measure, write docs/benchmarks/<date>-scaling.json, and make the pages of it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    volumes = {stage: run_distributed(count_bytes, 2, stage)[0] for stage in (1, 2)}
    times = {count: run_distributed(time_all_reduces, count)[0] for count in PROCESSES}
    results = {
        "bytes_per_parameter": {stage: volume.tolist() for stage, volume in volumes.items()},
        "all_reduce_seconds": times,
        "sizes": SIZES,
        "repetitions": REPETITIONS,
        "loader": measure_loader(),
    }
    known = facts()
    path = FOLDER / f"{known['date']}-scaling.json"
    path.write_text(json.dumps(known | results, indent=2) + "\n", encoding="utf-8")
    scaling_page.main()


if __name__ == "__main__":
    main()
