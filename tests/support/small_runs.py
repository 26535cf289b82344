"""Options of runs at the pictures' true size with everything else small, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Mapping

# Five captures of ten frames of 256 pixels, and two prior images.
SMALL_DATA: Mapping[str, str] = {
    "num-workers": "1",
    "synth.categories": "teddybear",
    "synth.objects-per-category": "5",
    "synth.frames-per-sequence": "10",
    "synth.image-size": "256",
    "preprocess.split-fractions": "0.6 0.2 0.2",
    "latents.num-prior-images": "2",
    "latents.prior-num-steps": "2",
    "train.validation-samples": "1",
    "train.checkpoint-every-steps": "1",
}


def words(options: Mapping[str, str]) -> list[str]:
    """The options as they are typed."""
    return [word for name, values in options.items() for word in (f"--{name}", *values.split())]
