"""What this project takes from inside Ray Train, where it has no public way to it. Takes seconds to import.

tests/unit/project/test_borrowed.py names each thing that a new version of Ray no longer has.
"""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller import state as controller_states

__all__ = ["ControllerCallback", "Trainer", "controller_states"]


class Trainer(TorchTrainer):
    """Without the actor that frees a lost controller's room: it asks whichever Ray it finds on its machine whether the
    controller lives, and one that does not know it makes it end a training's workers. See `release_reservations`.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [each for each in callbacks if not isinstance(each, PlacementGroupCleanerCallback)]
