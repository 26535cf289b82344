"""The ray march's Triton version: against the plain one under Triton's interpreter, and through its compiler.

Neither needs a GPU. Whether a kernel is interpreted or compiled is decided once in a process, when Triton is imported,
which other tests may have done: so both happen in processes of their own.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from model.volume.kernels.inputs import MarchInputs
from model.volume.kernels.marching import march
from model.volume.kernels.selection import use
from tests.numerics.comparison import assert_same
from tests.numerics.kernel_cases import march_case
from tests.numerics.triton_process import SHARED_MEMORY

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")


def _compare(density: float, case_arguments: dict[str, Any]) -> None:
    case = march_case(grid_size=5, **case_arguments)
    torch.nn.init.constant_(case.renderer.density.bias, density)
    assert_same(case, "triton")


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("channels", [16, 32])
def test_equals_the_plain_one(interpreter: ProcessPoolExecutor, background: bool, noise: bool, channels: int) -> None:
    """Several rays a program, the last one not full; 14 or 7 positions a ray."""
    case = {"background": background, "noise": noise, "channels": channels, "num_positions": 7, "size": (3, 5)}
    interpreter.submit(_compare, -0.5, case).result()


@pytest.mark.parametrize(("channels", "num_positions"), [(16, 129), (16, 300), (32, 128)])
def test_one_ray_for_a_program_equals_the_plain_one(
    interpreter: ProcessPoolExecutor, channels: int, num_positions: int
) -> None:
    """A ray fills a program's share of positions, with and without a rest, or is longer."""
    case = {"background": False, "channels": channels, "num_positions": num_positions, "size": (2, 3), "num_views": 1}
    interpreter.submit(_compare, -0.5, case).result()


def test_opaque_volume_equals_the_plain_one(interpreter: ProcessPoolExecutor) -> None:
    """Nothing comes through the first positions inside, and softplus is linear."""
    interpreter.submit(_compare, 25.0, {"background": False, "num_positions": 9}).result()


def _inputs(channels: int = 16, num_positions: int = 5) -> tuple[MarchInputs, list[Tensor]]:
    """What `march` takes, and its weights, without gradients."""
    case = march_case(grid_size=4, num_samples=2, channels=channels, size=(2, 3), num_positions=num_positions)
    codes = torch.randn(2, 2, 6, channels)
    weights = [weight.detach() for weight in case.renderer.weights()]
    return MarchInputs(case.volume, codes, *case.rays[:3], case.noise), weights


def _strided(tensor: Tensor) -> Tensor:
    """The same numbers, with others in between."""
    return torch.stack([tensor, tensor + 1], dim=-1)[..., 0]


def _compare_strides() -> None:
    from model.volume.kernels.triton import marching as triton_marching

    inputs, weights = _inputs()
    gradient = torch.randn(2, 2, 6, 18)
    strided = MarchInputs(*map(_strided, inputs)), [*map(_strided, weights)]
    torch.testing.assert_close(triton_marching.forward(*strided), triton_marching.forward(inputs, weights))
    torch.testing.assert_close(
        triton_marching.backward(_strided(gradient), *strided), triton_marching.backward(gradient, inputs, weights)
    )


def test_inputs_need_not_be_contiguous(interpreter: ProcessPoolExecutor) -> None:
    interpreter.submit(_compare_strides).result()


def _check_operator() -> None:
    (volume, codes, *others), weights = _inputs()
    weights = [weight.requires_grad_() for weight in weights]
    with use("triton"):
        torch.library.opcheck(march, (volume.requires_grad_(), codes.requires_grad_(), *others, weights))


def test_operator_keeps_the_compilers_rules(interpreter: ProcessPoolExecutor) -> None:
    """Strides are those of fake runs, results share no memory: PyTorch's own checks."""
    interpreter.submit(_check_operator).result()


def _refused_inputs() -> list[str]:
    from model.volume.kernels.triton import marching as triton_marching

    inputs, weights = _inputs()
    fewer_channels = inputs._replace(volume=inputs.volume[:, :8], ray_codes=inputs.ray_codes[..., :8])
    messages = []
    for refused in (fewer_channels, inputs._replace(points=inputs.points.double())):
        with pytest.raises(ValueError, match="float32") as error:
            triton_marching.forward(refused, weights)
        messages.append(str(error.value))
    return messages


def test_other_types_and_channels_are_refused(interpreter: ProcessPoolExecutor) -> None:
    of_channels, of_type = interpreter.submit(_refused_inputs).result()
    assert of_channels.endswith("torch.float32, 8")
    assert of_type.endswith("torch.float64, 16")


class _Compiled:
    """In place of a kernel: compiles it for what it is launched with, as for tensors at aligned addresses."""

    def __init__(self, kernel: Any, capability: int) -> None:
        self.kernel, self.capability = kernel, capability
        self.shared_memory = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.compile

    def compile(self, *arguments: Tensor | int, **constants: int) -> None:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        names = self.kernel.arg_names
        shape = {name: constants.pop(name) for name in names[len(arguments) :]}  # the rest says how to launch
        signature = {
            name: "*fp32" if isinstance(value, Tensor) else "i32" for name, value in zip(names, arguments, strict=False)
        }
        attributes = {
            (index,): [["tt.divisibility", 16]]
            for index, value in enumerate(arguments)
            if isinstance(value, Tensor) or value % 16 == 0
        }
        source = ASTSource(self.kernel, signature | dict.fromkeys(shape, "constexpr"), shape, attributes)
        compiled = triton.compile(source, target=GPUTarget("cuda", self.capability, 32), options=constants)
        assert "tf32" not in compiled.asm["ptx"]
        self.shared_memory = compiled.metadata.shared


def _compile(capability: int, channels: int, num_positions: int) -> list[int]:
    """Bytes of shared memory of the forward and of the backward kernel."""
    from model.volume.kernels.triton import marching as version

    inputs = _inputs(channels, num_positions)
    with pytest.MonkeyPatch.context() as patch:
        kernels = [_Compiled(kernel, capability) for kernel in (version.march_rays, version.differentiate_rays)]
        for name, kernel in zip(("march_rays", "differentiate_rays"), kernels, strict=True):
            patch.setattr(version, name, kernel)
        version.backward(version.forward(*inputs), *inputs)
    return [kernel.shared_memory for kernel in kernels]


@pytest.mark.parametrize(("capability", "channels", "num_positions"), [(80, 16, 128), (90, 32, 12)])
def test_compiles_for_cuda(compiler: ProcessPoolExecutor, capability: int, channels: int, num_positions: int) -> None:
    """In the full size for an A100, and with several rays a program for an H100 and H200; two programs fit."""
    for shared_memory in compiler.submit(_compile, capability, channels, num_positions).result():
        assert 0 < shared_memory < SHARED_MEMORY[capability] / 2
