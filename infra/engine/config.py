"""Settings of the optimisation.

Nothing that takes seconds to import is imported here, so that the command line can read the settings quickly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from infra.errors import UserError
from infra.provenance.fingerprint import HOW


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the weights are updated. Defaults: the paper, section 4 (AdamW, two learning rates, gradient clipping)."""

    zero_stage: int = field(default=2, metadata=HOW)
    """What the workers divide among them: 0 nothing, 1 the optimizer's state, 2 also the gradients."""
    precision: Literal["float32", "bf16"] = "float32"
    """Arithmetic of matrix products; weights, gradients and optimizer state are float32 in both."""
    learning_rate: float = 5e-5
    """Learning rate: about the largest change of a weight per step."""
    renderer_learning_rate: float = 5e-3
    """Learning rate of the volume renderer's own parameters, whose weight decay is 0."""
    weight_decay: float = 1e-2
    """Weight decay of all other parameters, per step and unit of learning rate."""
    gradient_clip: float = 5e-3
    """Largest norm of the whole gradient; a longer gradient is scaled down to it."""
    warmup_steps: int = 0
    """Steps over which both learning rates rise linearly from 0."""
    final_rate_share: float = 1.0
    """After the warmup both learning rates fall along half a cosine to this share of their value; 1 keeps them."""
    compile: bool = field(default=False, metadata=HOW)
    """Compile the network with torch.compile. Steps get faster; the first steps take minutes."""

    def __post_init__(self) -> None:
        if self.zero_stage == 3:
            # DeepSpeed's stage 3 hands every parameter group the first one's learning rate when the number of ranks
            # changes, and would gather all weights twice a backward pass.
            raise UserError("engine: zero_stage 3 is not supported: it loses the renderer's learning rate; take 2")
        if self.zero_stage not in (0, 1, 2):
            raise UserError(f"engine: zero_stage {self.zero_stage} must be 0, 1 or 2")
        if self.precision not in ("float32", "bf16"):
            raise UserError(f"engine: precision {self.precision!r} must be 'float32' or 'bf16'")
        for name in ("learning_rate", "renderer_learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise UserError(f"engine: {name} {getattr(self, name)} must be above 0")
        if not 0 <= self.final_rate_share <= 1:
            raise UserError(f"engine: final_rate_share {self.final_rate_share} must lie in [0, 1]")
        for name in ("weight_decay", "warmup_steps"):
            if not getattr(self, name) >= 0:
                raise UserError(f"engine: {name} {getattr(self, name)} must be 0 or more")
