"""Learning rate and weight decay of a parameter group at any step: functions of the config, nothing is kept."""

from __future__ import annotations

import math

from infra.engine.config import EngineConfig

RENDERER_GROUP = "renderer"  # has a learning rate of its own and no weight decay


def learning_rate(config: EngineConfig, group: str, step: int, *, num_steps: int) -> float:
    """Learning rate of a parameter group at step `step`, counted from 0, of `num_steps`."""
    full = config.renderer_learning_rate if group == RENDERER_GROUP else config.learning_rate
    if step < config.warmup_steps:
        return full * (step + 1) / config.warmup_steps
    done = min(1.0, (step - config.warmup_steps) / max(1, num_steps - 1 - config.warmup_steps))
    return full * (config.final_rate_share + (1 - config.final_rate_share) * 0.5 * (1 + math.cos(math.pi * done)))


def weight_decay(config: EngineConfig, group: str) -> float:
    """Weight decay of a parameter group."""
    return 0.0 if group == RENDERER_GROUP else config.weight_decay
