"""What the project takes from inside libraries is still there, and stands in one file per library."""

from __future__ import annotations

import inspect
import re
from pkgutil import resolve_name

import pytest

from tests.support.paths import CHECKOUT

STATES = "ray.train.v2._internal.execution.controller.state"
BORROWED = (
    "ray._private.auto_init_hook:enable_auto_connect",
    "ray._private.services:find_bootstrap_address",
    "ray._private.state:jobs",
    "ray._raylet:Config.initialize",
    "ray.train.torch:TorchTrainer._create_default_callbacks",
    "ray.train.v2._internal.callbacks.placement_group_callback:PlacementGroupCleanerCallback",
    "ray.train.v2._internal.execution.callback:ControllerCallback.after_controller_state_update",
    *(
        f"{STATES}:{name}State"
        for name in ("Preempting", "Rescheduling", "Resizing", "Restarting", "Running", "Scheduling", "TrainController")
    ),
    "deepspeed.ops:__compatible_ops__",
    "deepspeed.runtime.engine:DeepSpeedEngine.clip_fp32_gradients",
    "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer.scaled_global_norm",
    "deepspeed.utils:lazy_init_hp_params_optimizer_state",
    "deepspeed.utils:safe_get_full_optimizer_state",
    "deepspeed.utils:safe_set_full_optimizer_state",
    *(
        f"tyro._errors:{name}"
        for name in ("on_parse_error", "BadValue", "InstantiationFailure", "InvalidChoice", "MissingArgs")
    ),
    "torch:_foreach_add",
    "torch._subclasses.fake_tensor:FakeTensorMode",
    "torch.utils._python_dispatch:TorchDispatchMode",
)
ATTRIBUTES = {  # set on instances, so only the source of the class names them
    "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer": ("bit16_groups",),
    "tyro._errors:BadValue": ("argument", "offending_value", "reason"),
    "tyro._errors:InstantiationFailure": ("argument", "message"),
    "tyro._errors:InvalidChoice": ("argument", "choices", "value"),
    "tyro._errors:MissingArgs": ("missing_arguments", "prog"),
    f"{STATES}:PreemptingState": ("preemption_info",),
    f"{STATES}:RestartingState": ("training_failed_error",),
    f"{STATES}:ResizingState": ("scaling_decision",),
    f"{STATES}:SchedulingState": ("scaling_decision",),
}
INSIDE = re.compile(r"\b(?:ray|tyro|deepspeed)(?:\.\w+)*\._(?!_)\w+|from tyro import _")
WALLS = {
    "infra/cluster/ray_internals.py",
    "infra/cluster/ray_train_internals.py",
    "pipelines/cli/tyro_internals.py",
}
LOGGERS = {"infra/cluster/tasks.py"}  # names a logger, which nothing breaks without


@pytest.mark.parametrize("place", BORROWED)
def test_it_is_still_there(place: str) -> None:
    resolve_name(place)


@pytest.mark.parametrize("place", ATTRIBUTES)
def test_its_attributes_are_still_there(place: str) -> None:
    kind = resolve_name(place)
    assert inspect.isclass(kind)
    text = "".join(inspect.getsource(each) for each in kind.__mro__ if each is not object)
    assert [name for name in ATTRIBUTES[place] if not re.search(rf"\b{name}\b", text)] == []


def test_no_other_file_reaches_inside() -> None:
    files = [
        path for top in ("infra", "model", "preprocessing", "pipelines") for path in (CHECKOUT / top).rglob("*.py")
    ]
    reaching = {str(path.relative_to(CHECKOUT)) for path in files if INSIDE.search(path.read_text())}
    assert reaching - LOGGERS == WALLS
