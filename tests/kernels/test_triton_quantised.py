"""Products with weights of 8 and 4 bits in Triton against the references, NaN about all of them.

It needs a GPU or, as `test_interpreter` arranges, TRITON_INTERPRET=1.
"""

import pytest
import torch

from kernels import torch_ops, triton_ops
from tests.kernels.device import DEVICE, needs_a_device
from tests.kernels.guards import Guards
from tests.kernels.packing import pack_int4

pytestmark = needs_a_device
SHAPES = pytest.mark.parametrize(
    ("tokens", "inner", "columns"), [(1, 64, 1), (16, 130, 70), (17, 64, 65), (70, 200, 64)]
)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)


@SHAPES
def test_eight_bits(guards: Guards, tokens: int, inner: int, columns: int) -> None:
    x = guards.copy(torch.randn(tokens, inner).to(DEVICE))
    scales = guards.copy(torch.rand(columns).to(DEVICE))
    weight = torch.randint(-128, 128, (columns, inner), dtype=torch.int8, device=DEVICE)
    close(triton_ops.matmul_int8(x, weight, scales), torch_ops.matmul_int8(x, weight, scales))


@SHAPES
def test_eight_bits_with_a_point(guards: Guards, tokens: int, inner: int, columns: int) -> None:
    x = guards.copy(torch.randn(tokens, inner).to(DEVICE))
    scales = guards.copy(torch.rand(columns).to(DEVICE))
    weight = guards.copy(torch.randn(columns, inner).to(torch.float8_e4m3fn).to(DEVICE))
    close(triton_ops.matmul_fp8(x, weight, scales), torch_ops.matmul_fp8(x, weight, scales))


@pytest.mark.parametrize(
    ("tokens", "inner", "columns", "groups"),
    [(1, 32, 1, 1), (5, 128, 70, 4), (17, 256, 65, 2), (70, 96, 64, 3)],
)
def test_four_bits(guards: Guards, tokens: int, inner: int, columns: int, groups: int) -> None:
    x = guards.copy(torch.randn(tokens, inner).to(DEVICE))
    scales = guards.copy(torch.rand(columns, groups).to(DEVICE))
    zeros = torch.randint(0, 16, (columns, groups), dtype=torch.uint8, device=DEVICE)
    weight = pack_int4(torch.randint(0, 16, (columns, inner)), groups).to(DEVICE)
    close(
        triton_ops.matmul_int4(x, weight, scales, zeros),
        torch_ops.matmul_int4(x, weight, scales, zeros),
    )
