"""Whatever launch tuning may choose, results are right: each candidate's tiles, in the interpreter.

Warps and stages are no matter of the interpreter, so launches that differ in these alone are one.
"""

from collections.abc import Iterator

import pytest
import torch

from kernels import torch_ops, triton_ops
from kernels.launches import Launch, Rule, using
from kernels.triton_ops.launch_rules import DECODE, MATMUL_INT4, MATMUL_INT8, MOE, PREFILL
from tests.kernels import test_triton_decode, test_triton_prefill
from tests.kernels.device import needs_the_interpreter
from tests.kernels.packing import pack_int4

pytestmark = needs_the_interpreter
KINDS = ("sm_80", "sm_90", "gfx942")
HERE = "sm_80"  # as which the interpreter's device counts
FP32 = 4


def tiles(rule: Rule, *shape: int) -> Iterator[object]:
    """Every launch of the class on any kind of GPU that differs in its tiles."""
    found: list[Launch] = []
    for kind in KINDS:
        for launch in rule.candidates(kind, *shape):
            sizes = {name: launch[name] for name in launch if not name.startswith("num_")}
            if sizes not in found:
                found.append(sizes)
                yield pytest.param(rule, shape, launch, id=f"{rule.kernel}-{list(sizes.values())}")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("rule", "shape", "launch"),
    [*tiles(DECODE, FP32, FP32, 64, 16, 3), *tiles(DECODE, FP32, FP32, 16, 64, 1)],
)
def test_decode(rule: Rule, shape: tuple[int, ...], launch: Launch) -> None:
    _, _, head_dim, block_size, group = shape
    with using({rule.key(HERE, *shape): launch}):
        for limits in ((None, None), (300, 0.7)):
            test_triton_decode.check(
                [1, 0, 300], (1, group, head_dim, block_size), limits, processors=6
            )


@pytest.mark.parametrize(
    ("rule", "shape", "launch"),
    [*tiles(PREFILL, FP32, FP32, 32, 16, 3, False), *tiles(PREFILL, FP32, FP32, 32, 16, 3, True)],
)
def test_prefill(rule: Rule, shape: tuple[int, ...], launch: Launch) -> None:
    _, _, head_dim, block_size, group, few = shape
    runs = test_triton_prefill.FEW if few else test_triton_prefill.RAGGED
    with using({rule.key(HERE, *shape): launch}):
        for limits in ((None, None), (100, 0.7)):
            test_triton_prefill.check(runs, (1, group, head_dim, block_size), limits)


@pytest.mark.parametrize(
    ("rule", "shape", "launch"),
    [*tiles(MOE, FP32, 130, 72, 4, True), *tiles(MOE, FP32, 130, 72, 4, False)],
)
def test_experts(rule: Rule, shape: tuple[int, ...], launch: Launch) -> None:
    _, hidden, intermediate, experts, few = shape
    tokens = 20 if few else 100
    x, logits = torch.randn(tokens, hidden) / 3, torch.randn(tokens, experts)
    gate_up = torch.randn(experts, 2 * intermediate, hidden) / 3
    down = torch.randn(experts, hidden, intermediate) / 3
    given = (x, logits, gate_up, down, 2)
    expected = torch_ops.moe(*given, renormalise=True)
    with using({rule.key(HERE, *shape): launch}):
        actual = triton_ops.moe(*given, renormalise=True)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rule", "shape", "launch"),
    [*tiles(MATMUL_INT8, FP32, 200, 70, True), *tiles(MATMUL_INT8, FP32, 200, 70, False)],
)
def test_eight_bits(rule: Rule, shape: tuple[int, ...], launch: Launch) -> None:
    _, inner, columns, few = shape
    x, scales = torch.randn(5 if few else 70, inner), torch.rand(columns)
    weight = torch.randint(-128, 128, (columns, inner), dtype=torch.int8)
    with using({rule.key(HERE, *shape): launch}):
        actual = triton_ops.matmul_int8(x, weight, scales)
    expected = torch_ops.matmul_int8(x, weight, scales)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("rule", "shape", "launch"),
    [*tiles(MATMUL_INT4, FP32, 96, 70, 16, True), *tiles(MATMUL_INT4, FP32, 96, 70, 16, False)],
)
def test_four_bits(rule: Rule, shape: tuple[int, ...], launch: Launch) -> None:
    _, inner, columns, half, few = shape
    groups = inner // (2 * half)
    x, scales = torch.randn(5 if few else 70, inner), torch.rand(columns, groups)
    zeros = torch.randint(0, 16, (columns, groups), dtype=torch.uint8)
    weight = pack_int4(torch.randint(0, 16, (columns, inner)), groups)
    with using({rule.key(HERE, *shape): launch}):
        actual = triton_ops.matmul_int4(x, weight, scales, zeros)
    expected = torch_ops.matmul_int4(x, weight, scales, zeros)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)
