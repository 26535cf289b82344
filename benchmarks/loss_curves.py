"""Loss curves of trainings in one plot, and whether they end alike:

    python -m benchmarks.loss_curves NAME FOLDER NAME FOLDER ...

each a folder that `viewdiff train` prints. The first training is what the others are compared with.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.record import FOLDER, facts, table, write

LAST_STEPS = 50
STYLES = ("-", "--", ":", "-.")  # curves may lie on each other
TOLERANCE = 0.03  # of the mean loss over the last steps


def read_losses(folder: Path) -> np.ndarray:
    """The losses of all steps, in order."""
    return np.array([json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()])


def describe(folder: Path) -> str:
    """The settings that the curve depends on most."""
    config = json.loads((folder / "artifact.json").read_text())["config"]
    names = ("seed", "num_steps", "batch_size", "micro_batch_size", "num_views", "trained")
    return f"precision {config['engine']['precision']}, " + ", ".join(f"{name} {config[name]}" for name in names)


def main() -> None:
    """Plot, compare, write docs/benchmarks/<date>-loss-curves.{json,md,png}; exit code 1 if they do not end alike."""
    arguments = sys.argv[1:]
    if len(arguments) < 4 or len(arguments) % 2:
        sys.exit(__doc__)
    folders = {name: Path(folder) for name, folder in zip(arguments[::2], arguments[1::2], strict=True)}
    curves = {name: read_losses(folder) for name, folder in folders.items()}
    means = {name: float(losses[-LAST_STEPS:].mean()) for name, losses in curves.items()}
    first = next(iter(means.values()))
    differences = {name: mean / first - 1 for name, mean in means.items()}

    figure, axes = plt.subplots(figsize=(8, 4), constrained_layout=True)
    smooth = np.ones(10) / 10
    for number, (name, losses) in enumerate(curves.items()):
        (line,) = axes.plot(np.arange(1, len(losses) + 1), losses, linewidth=0.6, alpha=0.35)
        steps = np.arange(10, len(losses) + 1)
        axes.plot(
            steps,
            np.convolve(losses, smooth, "valid"),
            STYLES[number % 4],
            color=line.get_color(),
            label=f"{name}, mean of 10 steps",
        )
    axes.set(xlabel="step", ylabel="loss")
    axes.legend()
    axes.grid(alpha=0.3)
    FOLDER.mkdir(parents=True, exist_ok=True)
    picture = f"{facts()['date']}-loss-curves.png"
    figure.savefig(FOLDER / picture, dpi=110)

    rows = [[name, len(curves[name]), f"{means[name]:.4f}", f"{differences[name]:+.2%}"] for name in curves]
    text = table(["training", "steps", f"mean loss of the last {LAST_STEPS}", "difference"], rows)
    text += "".join(f"\n- {name}: {describe(folder)}" for name, folder in folders.items())
    text += f"\n\nAllowed: {TOLERANCE:.0%}.\n\n![Loss against steps]({picture})"
    write("loss-curves", title="Loss curves", text=text, results={"means": means, "differences": differences})
    sys.exit(int(max(abs(difference) for difference in differences.values()) > TOLERANCE))


if __name__ == "__main__":
    main()
