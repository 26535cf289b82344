"""Cross-frame attention by a reshape against gathering keys and values: `python -m benchmarks.bench_attention`."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.record import median_seconds_side_by_side, table, write
from model.layers.attention import attend, merge_views

NUM_VIEWS, NUM_SAMPLES = 5, 1
# Tokens of a view, channels and heads of Stable Diffusion 2.1's levels at 32 × 32 latents.
LEVELS = ((1024, 320, 5), (256, 640, 10), (64, 1280, 20))
TARGETS = {1024: 1.1, 256: 1.5}
EQUAL_WITHIN = 1e-6


def reshaped(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """All views of a sample as one sequence, [B*V, L, C] each."""
    joint = (merge_views(tokens, NUM_VIEWS) for tokens in (query, key, value))
    return attend(*joint, num_heads=num_heads).view_as(query)


def gathered(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """For each view its own keys and values and below them a copy of all others', as the paper's release does."""
    order = torch.tensor([[view, *(other for other in range(NUM_VIEWS) if other != view)] for view in range(NUM_VIEWS)])
    keys, values = (
        tokens.unflatten(0, (-1, NUM_VIEWS))[:, order].flatten(2, 3).flatten(0, 1) for tokens in (key, value)
    )
    return attend(query, keys, values, num_heads=num_heads)


@torch.no_grad()
def main() -> None:
    """Measure, print, write docs/benchmarks/<date>-attention.{json,md}."""
    rows = []
    for tokens, channels, num_heads in LEVELS:
        inputs = [torch.randn(NUM_SAMPLES * NUM_VIEWS, tokens, channels) for _ in range(3)]
        difference = (reshaped(*inputs, num_heads) - gathered(*inputs, num_heads)).abs().max().item()
        if difference > EQUAL_WITHIN:
            raise ArithmeticError(f"{tokens} tokens: the two differ by {difference}, more than {EQUAL_WITHIN}")
        calls = [lambda f=f: f(*inputs, num_heads) for f in (gathered, reshaped)]  # noqa: B023
        slow, fast = median_seconds_side_by_side(calls, repetitions=15)
        rows.append(
            {"tokens": tokens, "gathered": slow, "reshaped": fast, "ratio": slow / fast, "difference": difference}
        )
    text = f"{NUM_VIEWS} views, float32, {torch.get_num_threads()} threads.\n\n" + table(
        ["tokens a view", "gathered, ms", "reshaped, ms", "faster", "target", "largest difference"],
        [
            [row["tokens"], f"{row['gathered'] * 1e3:.2f}", f"{row['reshaped'] * 1e3:.2f}", f"{row['ratio']:.2f}×",
             f"{TARGETS[row['tokens']]}×" if row["tokens"] in TARGETS else "", f"{row['difference']:.1e}"]
            for row in rows
        ],
    )  # fmt: skip
    text += (
        "\nWhat is saved is the copying of keys and values. How much of the time that is depends on the processor: "
        "where memory is fast, products of matrices take the larger part.\n"
    )
    write("attention", title="Cross-frame attention", text=text, results={"results": rows})


if __name__ == "__main__":
    main()
