"""Root-mean-square normalisation in one kernel, the residual addition before it included.

One program a row. A row of up to `_ONE_PASS_MAX` elements is read once and stays in registers; a
longer one is read twice.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.ahead import Case

_ONE_PASS_MAX = 16384
_CHUNK = 4096
# Of one warp: two 16-byte loads of 16-bit numbers a thread.
_WARP_ELEMENTS = 512
_WARPS_MAX = 16


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """y = x / sqrt(mean(x²) + eps) · weight, over the last axis.

    Args:
        x: [tokens, hidden], any float dtype, contiguous.
        weight: [hidden], in x's dtype.
        eps: Added to the mean square; dimensionless.

    Returns:
        [tokens, hidden] in x's dtype; accumulated in fp32.

    Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.
    """
    assert x.dim() == 2, x.shape
    assert weight.shape == x.shape[1:], (x.shape, weight.shape)
    assert weight.dtype == x.dtype
    assert x.is_contiguous()
    assert weight.is_contiguous()
    out = torch.empty_like(x)
    _launch(out, x, None, weight, eps)
    return out


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(x + residual), x + residual): the two things a layer needs next.

    Args:
        x, residual: [tokens, hidden], of one dtype, contiguous. `residual` is overwritten with the
            sum.
        weight: [hidden], in x's dtype.
        eps: Added to the mean square.
    """
    assert x.dim() == 2, x.shape
    assert x.shape == residual.shape
    assert x.dtype == residual.dtype == weight.dtype
    assert weight.shape == x.shape[1:], (x.shape, weight.shape)
    assert x.is_contiguous()
    assert residual.is_contiguous()
    assert weight.is_contiguous()
    out = torch.empty_like(x)
    _launch(out, x, residual, weight, eps)
    return out, residual


def _launch(
    out: torch.Tensor,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
) -> None:
    tokens, width = x.shape
    block, warps = _block_and_warps(width)
    rms_norm_kernel[(tokens,)](
        out, x, residual, weight, eps, width, block, num_warps=warps, num_stages=1
    )


def _block_and_warps(width: int) -> tuple[int, int]:
    """How much of a row a program holds at a time, and its warps."""
    block = triton.next_power_of_2(width) if width <= _ONE_PASS_MAX else _CHUNK
    return block, min(max(block // _WARP_ELEMENTS, 1), _WARPS_MAX)


@triton.jit
def rms_norm_kernel(
    out: tl.tensor,
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    eps: float,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One row. With a residual (else None), the sum of both is normalised, and overwrites it."""
    start = tl.program_id(0).to(tl.int64) * WIDTH
    columns = tl.arange(0, BLOCK)
    if BLOCK >= WIDTH:
        inside = columns < WIDTH
        row = _sum(x, residual, start + columns, inside)
        wide = row.to(tl.float32)
        scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / WIDTH + eps)
        _store(out, residual, weight, row, scale, start, columns, inside)
    else:
        squares = tl.zeros([BLOCK], tl.float32)
        for chunk in range(0, WIDTH, BLOCK):
            at = chunk + columns
            wide = _sum(x, residual, start + at, at < WIDTH).to(tl.float32)
            squares += wide * wide
        scale = tl.rsqrt(tl.sum(squares, axis=0) / WIDTH + eps)
        # The sum is made again rather than stored above and read back: what another thread has
        # stored may not be there yet.
        for chunk in range(0, WIDTH, BLOCK):
            at = chunk + columns
            row = _sum(x, residual, start + at, at < WIDTH)
            _store(out, residual, weight, row, scale, start, at, at < WIDTH)


@triton.jit
def _sum(x: tl.tensor, residual: tl.tensor, at: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """x + residual at `at`, rounded to x's dtype; 0 where not inside."""
    row = tl.load(x + at, mask=inside, other=0.0)
    if residual is not None:
        other = tl.load(residual + at, mask=inside, other=0.0)
        row = (row.to(tl.float32) + other.to(tl.float32)).to(x.dtype.element_ty)
    return row


@triton.jit
def _store(
    out: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    row: tl.tensor,
    scale: tl.tensor,
    start: tl.tensor,
    columns: tl.tensor,
    inside: tl.tensor,
) -> None:
    """Rounds before and after the weight, as Hugging Face's Llama does."""
    if residual is not None:
        tl.store(residual + start + columns, row, mask=inside)
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    normed = (row.to(tl.float32) * scale).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + start + columns, (normed * factor).to(out.dtype.element_ty), mask=inside)


def cases() -> list[Case]:
    """Hidden sizes of common models, of small ones, and one too wide for one pass."""
    return [
        _case(dtype, width, added=added)
        for added in (False, True)
        for dtype in ("bf16", "fp16")
        for width in (576, 2048, 4096, 8192, 32768)
    ]


def _case(dtype: str, width: int, *, added: bool) -> Case:
    block, warps = _block_and_warps(width)
    pointers = ["out", "x", "weight", *(["residual"] if added else [])]
    constants: dict[str, Any] = {"WIDTH": width, "BLOCK": block}
    if not added:
        constants["residual"] = None
    return Case(
        name=f"{'add_rms_norm' if added else 'rms_norm'} {dtype} {width}",
        kernel=rms_norm_kernel,
        types={**dict.fromkeys(pointers, f"*{dtype}"), "eps": "fp32"},
        constants=constants,
        aligned=tuple(pointers),
        num_warps=warps,
        num_stages=1,
    )
