"""What each part of the model does for the loss of preset tiny:

    python -m benchmarks.ablations ROOT

Trains below ROOT, for 1,000 steps and with three seeds each: everything (full); the added parts alone (adapter);
without projection layers; without attention across views. With the same seed all see the same samples, views and
noise, so that their losses can be compared pair by pair. Interrupted, the same command goes on.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.loss_curves import read_losses
from benchmarks.record import FOLDER, facts, table, write
from pipelines.chain.running import run_chain
from pipelines.settings.presets import tiny
from pipelines.settings.run import TrainConfig
from pipelines.spine.runtime import RuntimeConfig

NUM_STEPS, SEEDS = 1000, (0, 1, 2)
LAST_STEPS = 100
SMOOTHED_STEPS = 40


def variants() -> dict[str, TrainConfig]:
    """Name in the plot -> settings."""
    full = replace(tiny().train, num_steps=NUM_STEPS, checkpoint_every_steps=250, preview_every_steps=NUM_STEPS)
    without = {
        part: replace(full, model=replace(full.model, without=(part,))) for part in ("projection", "cross_frame")
    }
    return {
        "full": full,
        "adapter": replace(full, trained="adapter"),
        "no projection layers": without["projection"],
        "no attention across views": without["cross_frame"],
    }


def train(settings: TrainConfig, root: str) -> Path:
    """Folder of the training, which may be finished already."""
    config = replace(tiny(), train=settings)
    return run_chain(config, RuntimeConfig(root=root), until="train")["train"].folder


def read_lines(folder: Path) -> list[dict[str, float]]:
    """What a training says of its steps."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def validation_loss(folder: Path) -> float:
    """The last one, of held-out objects."""
    return next(line["validation_loss"] for line in reversed(read_lines(folder)) if "validation_loss" in line)


def seconds(folder: Path) -> tuple[float, float]:
    """Of a step, and of those the ones in which the first rank waits for data; first steps of workers are left out."""
    lines = [line for line in read_lines(folder) if "time/data_seconds" in line]
    whole, data = (statistics.mean(line[f"time/{name}"] for line in lines) for name in ("seconds", "data_seconds"))
    return whole, data


def plot(curves: dict[str, np.ndarray], path: Path) -> None:
    """Each variant's mean over the seeds, and between which losses they lie; (seeds, steps) by variant."""
    figure, axes = plt.subplots(figsize=(9, 5), constrained_layout=True)
    window = np.ones(SMOOTHED_STEPS) / SMOOTHED_STEPS
    steps = np.arange(SMOOTHED_STEPS, NUM_STEPS + 1)
    for name, losses in curves.items():
        smooth = np.stack([np.convolve(one, window, "valid") for one in losses])
        (line,) = axes.plot(steps, smooth.mean(0), label=name)
        axes.fill_between(steps, smooth.min(0), smooth.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="step", ylabel=f"loss, mean of {SMOOTHED_STEPS} steps")
    axes.set_title("tiny: mean and range of three seeds")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train, plot, write docs/benchmarks/<date>-ablations.{json,md,png}."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folders = {
        name: [train(replace(settings, seed=seed), sys.argv[1]) for seed in SEEDS]
        for name, settings in variants().items()
    }
    curves = {name: np.stack([read_losses(folder) for folder in seeds]) for name, seeds in folders.items()}
    held_out = {name: [validation_loss(folder) for folder in seeds] for name, seeds in folders.items()}
    ends = {name: losses[:, -LAST_STEPS:].mean(1) for name, losses in curves.items()}

    FOLDER.mkdir(parents=True, exist_ok=True)
    picture = FOLDER / f"{facts()['date']}-ablations.png"
    plot(curves, picture)
    rows = []
    for name, end in ends.items():
        differences = " ".join(f"{mine / theirs - 1:+.1%}" for mine, theirs in zip(end, ends["full"], strict=True))
        losses = " ".join(f"{loss:.4f}" for loss in end)
        whole, data = np.mean([seconds(folder) for folder in folders[name]], axis=0)
        row = [name, losses, f"{end.mean():.4f}", differences, f"{statistics.mean(held_out[name]):.4f}"]
        rows.append([*row, f"{whole:.2f} s", f"{data / whole:.2%}"])
    header = [
        "trained",
        f"loss of the last {LAST_STEPS} steps, by seed",
        "mean",
        "to full, by seed",
        "held-out objects",
        "step",
        "of it waiting for data",
    ]
    text = table(header, rows) + f"\n![Loss against steps]({picture.name})"
    results = {"last": {name: end.tolist() for name, end in ends.items()}, "held_out": held_out}
    write("ablations", title="Loss of preset tiny without parts of the model", text=text, results=results)


if __name__ == "__main__":
    main()
