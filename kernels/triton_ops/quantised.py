"""Products with weights of 8 or 4 bits, which are widened in registers: half or a quarter to read.

    8 bits    y = (x · qᵀ) · scale                     one scale a column: after the sum
    4 bits    y = Σ over groups (x · (q - zero)ᵀ) · scale       after each group's sum

q and q - zero are small whole numbers, exact in every float dtype, so that only the sums round.
Both halves of a group's bytes are runs of inputs (see `kernels.torch_ops.quantised`): they are two
products, and nothing is interleaved.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.ahead import Case
from kernels.launches import Launch, Rule
from kernels.triton_ops.launch_rules import (
    MATMUL_FP8,
    MATMUL_INT4,
    MATMUL_INT8,
    ROWS_FEW,
    kind,
)


def matmul_int8(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """As `kernels.torch_ops.matmul_int8`; all contiguous."""
    assert weight.dtype == torch.int8
    return _scaled(MATMUL_INT8, x, weight, scales)


def matmul_fp8(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """As `kernels.torch_ops.matmul_fp8`; all contiguous. For GPUs that have the format: NVIDIA's
    from sm_89 on."""
    assert weight.dtype == torch.float8_e4m3fn
    return _scaled(MATMUL_FP8, x, weight, scales)


def _scaled(
    rule: Rule, x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    tokens, inner = x.shape
    columns = len(weight)
    assert weight.shape == (columns, inner)
    assert scales.shape == (columns,)
    assert all(one.is_contiguous() for one in (x, weight, scales))
    out = torch.empty((tokens, columns), dtype=x.dtype, device=x.device)
    few = tokens <= ROWS_FEW
    launch = rule.launch(kind(x.device), x.element_size(), inner, columns, few)
    grid = (triton.cdiv(tokens, launch["BLOCK_M"]), triton.cdiv(columns, launch["BLOCK_N"]))
    scaled_matmul_kernel[grid](out, x, weight, scales, tokens, inner, columns, **launch)
    return out


def matmul_int4(
    x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor
) -> torch.Tensor:
    """As `kernels.torch_ops.matmul_int4`; all contiguous, groups of 32 · 2ⁿ inputs."""
    tokens, inner = x.shape
    columns, groups = scales.shape
    assert weight.dtype == zeros.dtype == torch.uint8
    assert zeros.shape == scales.shape
    assert weight.shape == (columns, inner // 2)
    assert inner % (2 * groups) == 0
    half = inner // groups // 2
    assert half >= 16, "a group has at least 32 inputs"
    assert half & (half - 1) == 0, "a group's size is a power of two"
    assert all(one.is_contiguous() for one in (x, weight, scales, zeros))
    out = torch.empty((tokens, columns), dtype=x.dtype, device=x.device)
    few = tokens <= ROWS_FEW
    launch = MATMUL_INT4.launch(kind(x.device), x.element_size(), inner, columns, half, few)
    grid = (triton.cdiv(tokens, launch["BLOCK_M"]), triton.cdiv(columns, launch["BLOCK_N"]))
    int4_matmul_kernel[grid](out, x, weight, scales, zeros, tokens, inner, columns, half, **launch)
    return out


@triton.jit(do_not_specialize=["tokens"])
def scaled_matmul_kernel(
    out: tl.tensor, x: tl.tensor, weight: tl.tensor, scales: tl.tensor, tokens: tl.tensor,
    INNER: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
) -> None:  # fmt: skip
    """One tile of [tokens, COLUMNS]."""
    rows = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    columns = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    in_rows, in_columns = rows < tokens, columns < COLUMNS
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, INNER, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        in_k = k < INNER
        a_at = x + rows[:, None] * INNER + k[None, :]
        a = tl.load(a_at, mask=in_rows[:, None] & in_k[None, :], other=0.0)
        q_at = weight + columns[None, :] * INNER + k[:, None]
        q = tl.load(q_at, mask=in_columns[None, :] & in_k[:, None], other=0.0)
        total = tl.dot(a, q.to(a.dtype), total, input_precision="ieee")
    total *= tl.load(scales + columns, mask=in_columns, other=0.0)[None, :]
    out_at = out + rows[:, None] * COLUMNS + columns[None, :]
    tl.store(out_at, total.to(out.dtype.element_ty), mask=in_rows[:, None] & in_columns[None, :])


@triton.jit(do_not_specialize=["tokens"])
def int4_matmul_kernel(
    out: tl.tensor, x: tl.tensor, weight: tl.tensor, scales: tl.tensor, zeros: tl.tensor,
    tokens: tl.tensor, INNER: tl.constexpr, COLUMNS: tl.constexpr, HALF: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
) -> None:  # fmt: skip
    """One tile of [tokens, COLUMNS]; a group is 2 · HALF inputs."""
    rows = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    columns = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    in_rows, in_columns = rows < tokens, columns < COLUMNS
    groups: tl.constexpr = INNER // (2 * HALF)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for group in range(groups):
        k = tl.arange(0, HALF)
        a_at = x + rows[:, None] * INNER + group * 2 * HALF + k[None, :]
        first = tl.load(a_at, mask=in_rows[:, None], other=0.0)
        second = tl.load(a_at + HALF, mask=in_rows[:, None], other=0.0)
        packed_at = weight + columns[None, :] * (INNER // 2) + group * HALF + k[:, None]
        packed = tl.load(packed_at, mask=in_columns[None, :], other=0)
        at = columns * groups + group
        zero = tl.load(zeros + at, mask=in_columns, other=0).to(tl.int32)[None, :]
        low = (packed & 15).to(tl.int32) - zero
        high = (packed >> 4).to(tl.int32) - zero
        part = tl.dot(first, low.to(first.dtype), input_precision="ieee")
        part = tl.dot(second, high.to(first.dtype), part, input_precision="ieee")
        total += part * tl.load(scales + at, mask=in_columns, other=0.0)[None, :]
    out_at = out + rows[:, None] * COLUMNS + columns[None, :]
    tl.store(out_at, total.to(out.dtype.element_ty), mask=in_rows[:, None] & in_columns[None, :])


def cases() -> list[Case]:
    """gate · up of Llama 3.1 8B, for few and many tokens; groups of 128 and 32."""
    return [
        case for few in (True, False) for dtype in ("bf16", "fp16") for case in _cases(dtype, few)
    ]


_INNER, _COLUMNS = 4096, 28672


def _cases(dtype: str, few: bool) -> list[Case]:
    pointers = {"out": f"*{dtype}", "x": f"*{dtype}", "scales": "*fp32"}
    int8 = {**pointers, "weight": "*i8"}
    fp8 = {**pointers, "weight": "*fp8e4nv"}
    int4 = {**pointers, "weight": "*u8", "zeros": "*u8"}
    shape = ("sm_90", 2, _INNER, _COLUMNS)
    return [
        _case(f"matmul_int8 {dtype}", int8, MATMUL_INT8.launch(*shape, few)),
        _case(f"matmul_fp8 {dtype}", fp8, MATMUL_FP8.launch(*shape, few), targets=("sm_90",)),
        *(
            _case(f"matmul_int4 {dtype}", int4, MATMUL_INT4.launch(*shape, half, few), half=half)
            for half in (16, 64)
        ),
    ]


def _case(
    name: str, pointers: dict[str, str], launch: Launch, half: int | None = None, **more: Any
) -> Case:
    constants = {"INNER": _INNER, "COLUMNS": _COLUMNS, **launch}
    warps, stages = constants.pop("num_warps"), constants.pop("num_stages")
    name += f" {constants['BLOCK_M']}"
    if half is not None:
        constants["HALF"] = half
        name += f" {2 * half}"
    return Case(
        name=name,
        kernel=scaled_matmul_kernel if half is None else int4_matmul_kernel,
        types={**pointers, "tokens": "i32"},
        constants=constants,
        aligned=tuple(pointers),
        num_warps=warps,
        num_stages=stages,
        **more,
    )
