"""`viewdiff plan` against measurement: `python -m benchmarks.bench_plan`.

Memory: the plan's peak against that of two steps with the real engine, in a process of its own for each of four small
trainings. FLOPs: the model's against PyTorch's counter while the same networks compute. Both sides in one run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import torch

from benchmarks.counted_flops import count_passes, workload_of
from benchmarks.plan_cases import build_network, cases, measure_peak, view_batch
from benchmarks.record import table, write
from model.cost.flops import count_flops, total
from pipelines.planning.memory import GB, training_memory

MEMORY_WITHIN, FLOPS_WITHIN = 0.15, 0.02
# glibc keeps what is freed, up to 32 MB apiece, for later. Told to give it back at once, it holds what is in use.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def measured_peak(name: str) -> int:
    """Bytes of a case's real steps."""
    command = [sys.executable, "-m", "benchmarks.bench_plan", "--measure", name]
    environment = os.environ | GIVE_BACK | {"LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"}
    return int(
        subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1]
    )


def compare(name: str) -> dict[str, Any]:
    """Both figures of a case, planned and measured."""
    config = cases()[name]
    network, batch = build_network(config), view_batch(config, 1)
    inputs = {
        "latents": batch.latents,
        "timesteps": torch.full(batch.latents.shape[:2], 500),
        "text": batch.text,
        "scene": batch.scene,
        "hidden_views": 1,
        "opacity_noise_seeds": torch.tensor([1]),
    }
    forward, backward = count_passes(network, inputs)
    flops = total(count_flops(network, workload_of(network, inputs)))
    memory = training_memory(config, num_workers=1, device="cpu")
    result = {
        "case": name,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "forward_flops": {"planned": flops.forward, "measured": forward},
        "backward_flops": {"planned": flops.executed - flops.forward, "measured": backward},
        "peak_bytes": {"planned": memory.peak, "measured": measured_peak(name)},
        "parts": memory.table(),
    }
    print(result, flush=True)
    return result


def _cell(pair: dict[str, float], unit: float) -> str:
    return f"{pair['planned'] / unit:.3f} / {pair['measured'] / unit:.3f}, {_off(pair):+.1%}"


def _off(pair: dict[str, float]) -> float:
    return pair["planned"] / pair["measured"] - 1


def main() -> None:
    """Measure, print, write docs/benchmarks/<date>-plan.{json,md}; exit code 1 if the plan is off by too much."""
    if sys.argv[1:2] == ["--measure"]:
        print(measure_peak(cases()[sys.argv[2]]), flush=True)
        os._exit(0)  # gloo's threads may still hold tensors, which aborts an ordinary end now and then
    rows = [compare(name) for name in cases()]
    text = (
        "Planned / measured. Memory: the peak of two steps over what the process held before, on one CPU worker with "
        f"the real engine; allowed {MEMORY_WITHIN:.0%}. FLOPs: of one sample of 4 views, a forward and a backward "
        f"pass, this with what it computes again; allowed {FLOPS_WITHIN:.0%}. "
        "`full` trains all weights in float32 (ZeRO 1), `alone` the same without ZeRO, "
        "`checkpointed` with gradient checkpointing and volumes computed again (ZeRO 2), `adapter` only what is added, "
        "in bfloat16 (ZeRO 2).\n\n"
    ) + table(
        ["training", "parameters", "peak memory, GB", "forward, GFLOP", "backward, GFLOP"],
        [
            [
                row["case"],
                f"{row['parameters'] / 1e6:.1f} M",
                _cell(row["peak_bytes"], GB),
                _cell(row["forward_flops"], 1e9),
                _cell(row["backward_flops"], 1e9),
            ]
            for row in rows
        ],
    )
    write("plan", title="The plan against measurement", text=text, results={"results": rows})
    memory = max(abs(_off(row["peak_bytes"])) for row in rows)
    flops = max(abs(_off(row[name])) for row in rows for name in ("forward_flops", "backward_flops"))
    sys.exit(int(memory > MEMORY_WITHIN or flops > FLOPS_WITHIN))


if __name__ == "__main__":
    main()
