"""pipelines/commands/summary.py: the scores that a run ends with."""

from __future__ import annotations

from pipelines.commands.summary import score_lines
from pipelines.evaluation.scoring import SCORE_COLUMNS


def test_scores_are_a_table_with_both_baselines_compared() -> None:
    scores = {column: 10.0 + place for place, column in enumerate(SCORE_COLUMNS)}
    gains = {"copy": (1.5, 0.25), "mean": (-0.5, 0.125)}
    summary = scores | {"num_objects": 16}
    for name, (gain, error) in gains.items():
        summary |= {f"psnr_gain_{name}": gain, f"psnr_gain_{name}_error": error}
    assert score_lines(summary) == [
        "16 held-out objects from one view        PSNR    SSIM",
        "  ours                               10.00 dB  14.000",
        "  given view, copied                 11.00 dB  15.000",
        "  mean training image                12.00 dB  16.000",
        "  autoencoder (ceiling)              13.00 dB  17.000",
        "  ahead of the copied view by 1.50 ± 0.25 dB",
        "  behind the mean image by 0.50 ± 0.12 dB",
    ]
