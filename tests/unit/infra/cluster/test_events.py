"""infra/cluster/events.py: what is done when Ray Train's controller changes its state."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.train import WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from infra.cluster.events import TrainingEvents
from infra.cluster.ray_train_internals import controller_states as states


class Controller:
    """Goes from state to state as Ray Train's does."""

    def __init__(self, folder: Path) -> None:
        self.request, self._notices = folder / "checkpoint-requested", folder / "notices"
        self._events = TrainingEvents(checkpoint_request=self.request, notices=self._notices, least_workers=1)
        self._state: states.TrainControllerState = states.RunningState()

    def enter(self, state: states.TrainControllerState) -> None:
        before, self._state = self._state, state
        self._events.after_controller_state_update(before, state)

    def said(self) -> list[str]:
        return self._notices.read_text().splitlines() if self._notices.exists() else []


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    return Controller(tmp_path)


def preempting(deadline_ms: int | None = None) -> states.PreemptingState:
    info = PreemptionInfo(deadline_ms=deadline_ms, preempted_node_to_ranks={"0123456789abcdef": [1]})
    return states.PreemptingState(preemption_info=info, detected_at_s=time.time())


def scheduling(num_workers: int) -> states.SchedulingState:
    return states.SchedulingState(SimpleNamespace(num_workers=num_workers))  # type: ignore[arg-type]


def test_a_node_is_left_as_soon_as_a_checkpoint_is_there(controller: Controller) -> None:
    far = int(1000 * time.time()) + 600_000
    controller.enter(preempting(far))
    assert controller.request.exists()
    assert controller.said() == ["node 01234567 is about to go; saving a checkpoint, then leaving it"]

    waiting = preempting(far)
    controller.enter(waiting)
    assert waiting.preemption_info.deadline_ms == far  # the training has not saved yet

    controller.request.unlink()
    saved = preempting(far)
    controller.enter(saved)
    assert saved.preemption_info.deadline_ms == 0
    assert saved.preemption_info.preempted_ranks == [1]
    assert not controller.request.exists()  # asked for once
    assert len(controller.said()) == 1


def test_workers_are_added_after_a_checkpoint(controller: Controller) -> None:
    removed = []

    def save() -> None:
        while not controller.request.exists():
            time.sleep(0.01)
        time.sleep(0.3)
        removed.append(time.monotonic())
        controller.request.unlink()

    training = threading.Thread(target=save)
    training.start()
    controller.enter(states.ResizingState(SimpleNamespace(num_workers=2)))  # type: ignore[arg-type]
    returned = time.monotonic()
    training.join()
    assert returned >= removed[0]
    assert controller.said() == ["there is room for 2 workers now; using it"]


def test_a_wait_for_nodes_is_told_once(controller: Controller) -> None:
    for _ in range(2):
        controller.enter(scheduling(2))
        controller.enter(states.ReschedulingState(WorkerGroupError("", {})))
    assert controller.said() == ["no room for 2 workers yet; waiting for nodes"]
    controller.enter(scheduling(2))
    controller.enter(states.RunningState())
    lost = states.RestartingState(WorkerGroupError("", {1: RuntimeError("dead")}))
    for _ in range(3):  # less room than for the fewest workers: the controller stays where it is
        controller.enter(lost)
    assert controller.said()[1:] == [
        "worker 1 was lost or failed; going on from the newest checkpoint",
        "waiting for nodes with room for 1 workers",
    ]


def test_nothing_is_said_while_all_is_well(controller: Controller) -> None:
    controller.enter(scheduling(2))
    for _ in range(3):
        controller.enter(states.RunningState())
    assert controller.said() == []
    assert not controller.request.exists()
