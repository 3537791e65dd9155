"""Products with packed weights are products with the weights that were packed."""

import pytest
import torch

from kernels.torch_ops import matmul_fp8, matmul_int4, matmul_int8
from tests.kernels.packing import pack_int4


def test_eight_bits_are_numbers_times_their_columns_scale() -> None:
    torch.manual_seed(0)
    x, scales = torch.randn(3, 20, dtype=torch.float64), torch.rand(7)
    whole = torch.randint(-128, 128, (7, 20))
    expected = x @ (whole * scales[:, None].double()).T
    torch.testing.assert_close(matmul_int8(x, whole.to(torch.int8), scales), expected, rtol=1e-5,
                               atol=1e-4)  # fmt: skip
    eighth = torch.randn(7, 20).to(torch.float8_e4m3fn)
    expected = x @ (eighth.double() * scales[:, None].double()).T
    torch.testing.assert_close(matmul_fp8(x, eighth, scales), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("inner", "groups"), [(64, 1), (64, 4), (96, 3)])
def test_four_bits_are_numbers_less_their_groups_zero_times_its_scale(
    inner: int, groups: int
) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, inner, dtype=torch.float64)
    q = torch.randint(0, 16, (5, inner))
    scales, zeros = torch.rand(5, groups), torch.randint(0, 16, (5, groups))
    size = inner // groups
    wide = torch.empty(5, inner, dtype=torch.float64)
    for column in range(5):
        for i in range(inner):
            group = i // size
            wide[column, i] = (q[column, i] - zeros[column, group]) * scales[column, group].double()
    got = matmul_int4(x, pack_int4(q, groups), scales, zeros.to(torch.uint8))
    torch.testing.assert_close(got, x @ wide.T, rtol=1e-5, atol=1e-4)
