"""What happens to a training's workers, as Ray Train's controller sees it: lost workers, leaving nodes, new room.

The controller is an actor on the driver's machine. In it this asks the training for a checkpoint before workers are
moved, and leaves lines for the driver to show. Apart from infra/cluster/workers.py, because Ray takes seconds to
import.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from ray.train import TrainingFailedError

from infra.cluster.ray_train_internals import ControllerCallback
from infra.cluster.ray_train_internals import controller_states as states

_CHECKPOINT_SECONDS = 120.0  # for a step and a checkpoint; then workers are moved without, as when one just died
_POLL_SECONDS = 0.2
_DUE = 0  # a deadline that is over, in ms since 1970


class TrainingEvents(ControllerCallback):
    """Reacts to the controller's states.

    `checkpoint_request` is a file that the training removes when it has saved a checkpoint; `notices` one that gets a
    line for everything that a person wants to know.
    """

    def __init__(self, *, checkpoint_request: Path, notices: Path, least_workers: int) -> None:
        self._request, self._notices, self._least = checkpoint_request, notices, least_workers
        self._wanted = least_workers
        self._waiting = False  # for nodes; said once

    def after_controller_state_update(
        self, previous_state: states.TrainControllerState, current_state: states.TrainControllerState
    ) -> None:
        """Called by the controller after each of its steps; until it returns, the controller does nothing else."""
        match current_state:
            case states.PreemptingState():
                self._leave(current_state, first=not isinstance(previous_state, states.PreemptingState))
            case states.ResizingState():
                self._tell(f"there is room for {current_state.scaling_decision.num_workers} workers now; using it")
                self._request.touch()
                self._wait_for_checkpoint()
            case states.SchedulingState():
                self._wanted = current_state.scaling_decision.num_workers
            case states.RunningState():
                self._waiting = False
            case states.ReschedulingState() if current_state is not previous_state:
                self._wait(f"no room for {self._wanted} workers yet; waiting for nodes")
            case states.RestartingState() if current_state is not previous_state:
                self._tell(f"{_reason(current_state.training_failed_error)}; going on from the newest checkpoint")
            case _ if current_state is previous_state:
                self._wait(f"waiting for nodes with room for {self._least} workers")

    def _leave(self, state: states.PreemptingState, *, first: bool) -> None:
        """Leave a node that is about to go as soon as a checkpoint is there, however much time is left: what is done
        after the checkpoint is done again elsewhere.
        """
        if first:
            nodes = ", ".join(node[:8] for node in state.preemption_info.preempted_node_ids)
            self._tell(f"node {nodes} is about to go; saving a checkpoint, then leaving it")
            self._request.touch()
        elif not self._request.exists():
            state.preemption_info = replace(state.preemption_info, deadline_ms=_DUE)

    def _wait_for_checkpoint(self) -> None:
        deadline = time.monotonic() + _CHECKPOINT_SECONDS
        while self._request.exists() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _wait(self, line: str) -> None:
        if not self._waiting:
            self._tell(line)
            self._waiting = True
        time.sleep(_POLL_SECONDS)  # the controller itself looks again at once, with all of a core

    def _tell(self, line: str) -> None:
        with self._notices.open("a") as file:
            file.write(line + "\n")


def _reason(error: TrainingFailedError) -> str:
    """Why workers are started again, in a few words."""
    failures = getattr(error, "worker_failures", {})
    if not failures:  # the controller stopped them itself
        return "all workers were stopped"
    ranks = ", ".join(str(rank) for rank in sorted(failures))
    return f"worker {ranks} was lost or failed"
