"""How often something is done during a training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cadence:
    """Every so many steps, and after the last."""

    every_steps: int
    num_steps: int

    def is_due(self, step: int) -> bool:
        """Whether it is time after `step` steps."""
        return step % self.every_steps == 0 or step == self.num_steps
