"""The aggregation's Triton version: against the plain one under Triton's interpreter, and through its compiler.

Neither needs a GPU. A process either interprets or compiles kernels, so both happen in processes of their own.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.volume.filling import ViewAggregator, VoxelProjections
from model.volume.kernels.aggregation import unproject_aggregate
from model.volume.kernels.inputs import AggregationInputs
from model.volume.kernels.selection import use
from tests.numerics.comparison import assert_same
from tests.numerics.kernel_cases import AggregationCase, aggregation_case
from tests.numerics.triton_process import SHARED_MEMORY, triton_process

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    with triton_process(TRITON_INTERPRET="1") as pool:
        pool.submit(_multiply_like_tensor_cores).result()
        yield pool


def _multiply_like_tensor_cores() -> None:
    """The interpreter's products take TF32, as on a GPU, where kernels ask for it: without the last bits."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    exact = InterpreterBuilder.create_dot

    def cut(factor: Any) -> Any:
        bits = np.ascontiguousarray(factor.data).view(np.uint32) & np.uint32(0xFFFFE000)
        return TensorHandle(bits.view(np.float32), factor.dtype)

    def create_dot(self: Any, x: Any, y: Any, total: Any, precision: Any, *options: Any) -> Any:
        if precision.name == "TF32":
            x, y = cut(x), cut(y)
        return exact(self, x, y, total, precision, *options)

    InterpreterBuilder.create_dot = create_dot


def _compare(case: AggregationCase) -> None:
    # See the same test of the tiled version.
    assert_same(case, "triton", without=("weight.",) if case.features.shape[1] == 1 else ())


def _compare_case(precision: str, channels: int, num_views: int, background: bool) -> None:
    """Two blocks a sample, none of them full, and two for one of the programs."""
    import triton.language as tl

    from model.volume.kernels.triton import layers as triton_layers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_layers, "PRECISION", tl.constexpr(precision))
        _compare(aggregation_case(grid_size=4, channels=channels, num_views=num_views, background=background))


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize(
    ("precision", "channels", "num_views"),
    [("tf32x3", 16, 1), ("tf32x3", 16, 3), ("tf32x3", 32, 3), ("ieee", 16, 3)],
)
def test_equals_the_plain_one(
    interpreter: ProcessPoolExecutor, precision: str, channels: int, num_views: int, background: bool
) -> None:
    interpreter.submit(_compare_case, precision, channels, num_views, background).result()


def _compare_first_views() -> None:
    case = aggregation_case(grid_size=4, num_views=4)
    case = case._replace(features=case.features[:, :2], timestep_embedding=case.timestep_embedding[:, :2])
    _compare(case._replace(voxels=case.voxels.map_views(lambda x: x[:, :2])))


def test_first_views_of_more_equal_the_plain_ones(interpreter: ProcessPoolExecutor) -> None:
    interpreter.submit(_compare_first_views).result()


def _compare_unseen() -> None:
    """A sample that no view sees, whose pixels are no numbers, and a view that sees some of the other's blocks."""
    case = aggregation_case(grid_size=5)
    pixels, depth, *others = case.voxels
    depth[0] = 0
    depth[1, 0, 50:] = 0
    pixels = torch.where((depth > 0)[..., None], pixels, torch.nan)
    _compare(case._replace(voxels=VoxelProjections(pixels, depth, *others)))


def test_unseen_blocks_equal_the_plain_ones(interpreter: ProcessPoolExecutor) -> None:
    interpreter.submit(_compare_unseen).result()


def _compare_list() -> None:
    """With the views' numbers of a voxel side by side."""
    case = aggregation_case(grid_size=4, num_samples=1)
    pixels, depth, reachable, ray_matrices = case.voxels
    pixels, depth = (x[:, :, 20:50].transpose(1, 2).contiguous().transpose(1, 2) for x in (pixels, depth))
    _compare(case._replace(voxels=VoxelProjections(pixels, depth, reachable[20:50], ray_matrices)))


def test_voxels_need_not_be_a_cube(interpreter: ProcessPoolExecutor) -> None:
    interpreter.submit(_compare_list).result()


def _propagates_nan() -> bool:
    from model.volume.kernels.triton import aggregation as triton_aggregation

    inputs, weights = _inputs()
    spoiled = inputs._replace(features=inputs.features * torch.nan)
    return bool(triton_aggregation.forward(spoiled, weights).isnan().any())


def test_errors_show(interpreter: ProcessPoolExecutor) -> None:
    assert interpreter.submit(_propagates_nan).result()


def _inputs(
    channels: int = 16, num_views: int = 2, dtype: torch.dtype = torch.float32
) -> tuple[AggregationInputs, list[Tensor]]:
    """What `unproject_aggregate` takes, and its weights, without gradients."""
    case = aggregation_case(grid_size=4, num_samples=1, num_views=num_views, channels=channels, dtype=dtype)
    features = case.features.movedim(2, -1).contiguous()
    codes = torch.randn(1, num_views, channels, dtype=dtype)
    assert isinstance(case.aggregator, ViewAggregator)
    weights = [weight.detach() for weight in case.aggregator.weights()]
    return AggregationInputs(features, codes, *case.voxels), weights


def _check_operator() -> None:
    (features, codes, *others), weights = _inputs()
    weights = [weight.requires_grad_() for weight in weights]
    with use("triton"):
        torch.library.opcheck(
            unproject_aggregate, (features.requires_grad_(), codes.requires_grad_(), *others, weights)
        )


def test_operator_keeps_the_compilers_rules(interpreter: ProcessPoolExecutor) -> None:
    """Strides are those of fake runs, results share no memory: PyTorch's own checks."""
    interpreter.submit(_check_operator).result()


def _refusal(channels: int, dtype: torch.dtype) -> str:
    from model.volume.kernels.triton import aggregation as triton_aggregation

    with pytest.raises(ValueError, match="float32") as error:
        triton_aggregation.forward(*_inputs(channels, dtype=dtype))
    return str(error.value)


def test_other_types_and_channels_are_refused(interpreter: ProcessPoolExecutor) -> None:
    assert interpreter.submit(_refusal, 8, torch.float32).result().endswith("torch.float32, 8")
    assert interpreter.submit(_refusal, 16, torch.float64).result().endswith("torch.float64, 16")


class _Driver:
    """In place of a GPU, whose number is its compute capability."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


class _Compiled:
    """In place of a kernel: compiles it for what it is launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.compile

    def compile(self, *arguments: Any, **constants: int) -> None:
        compiled = self.kernel.warmup(*arguments, grid=(1,), **constants)
        assert compiled.asm["cubin"]
        self.shared_memory = compiled.metadata.shared


def _compile(direction: str, capability: int, channels: int, num_views: int) -> int:
    """Bytes of shared memory that a program needs."""
    from triton.runtime import driver

    from model.volume.kernels.triton import aggregation as version

    driver.set_active(_Driver(capability))
    name = {"forward": "aggregate_views", "backward": "differentiate_views"}[direction]
    kernel = _Compiled(getattr(version, name))
    inputs = _inputs(channels, num_views)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(version, name, kernel)
        if direction == "forward":
            version.forward(*inputs)
        else:
            version.backward(torch.randn(1, channels, 64), *inputs)
    return kernel.shared_memory


@pytest.mark.parametrize(
    ("direction", "capability", "channels", "num_views"),
    [("forward", 80, 16, 1), ("forward", 90, 16, 4), ("backward", 90, 16, 4)],
)
def test_compiles_for_cuda(
    compiler: ProcessPoolExecutor, direction: str, capability: int, channels: int, num_views: int
) -> None:
    """For an A100, and for an H100 or H200. Shared memory suffices for all programs that there are registers for."""
    programs = {"forward": 8, "backward": 4}[direction]
    assert (
        compiler.submit(_compile, direction, capability, channels, num_views).result()
        < SHARED_MEMORY[capability] / programs
    )
