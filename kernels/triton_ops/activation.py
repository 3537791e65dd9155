"""The gated activation of a Llama MLP: both halves of a row read once, their product written."""

import torch
import triton
import triton.language as tl

from kernels.ahead import Case

# One 16-byte load of 16-bit numbers a thread from each half.
_BLOCK = 1024
_WARPS = 4


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up, where silu(x) = x / (1 + exp(-x)).

    Args:
        gate_up: [tokens, 2 · intermediate], gate in the first half of each row; contiguous.

    Returns:
        [tokens, intermediate] in gate_up's dtype.

    Source: Shazeer 2020, arXiv:2002.05202 (SwiGLU), eq. 5.
    """
    assert gate_up.dim() == 2, gate_up.shape
    assert gate_up.shape[1] % 2 == 0, gate_up.shape
    assert gate_up.is_contiguous()
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((tokens, width), dtype=gate_up.dtype, device=gate_up.device)
    grid = (tokens, triton.cdiv(width, _BLOCK))
    silu_mul_kernel[grid](out, gate_up, width, _BLOCK, num_warps=_WARPS, num_stages=1)
    return out


@triton.jit
def silu_mul_kernel(
    out: tl.tensor, gate_up: tl.tensor, WIDTH: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    """BLOCK columns of one row of [tokens, WIDTH]."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    dtype = out.dtype.element_ty
    gate_at = gate_up + row * (2 * WIDTH) + columns
    gate = tl.load(gate_at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_at + WIDTH, mask=inside, other=0.0).to(tl.float32)
    # Rounded between the two, as two operations would.
    silu = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
    tl.store(out + row * WIDTH + columns, (silu * up).to(dtype), mask=inside)


def cases() -> list[Case]:
    """Intermediate sizes of SmolLM2-135M, Llama 3.1 8B and 70B."""
    return [
        Case(
            name=f"silu_mul {dtype} {width}",
            kernel=silu_mul_kernel,
            types={"out": f"*{dtype}", "gate_up": f"*{dtype}"},
            constants={"WIDTH": width, "BLOCK": _BLOCK},
            aligned=("out", "gate_up"),
            num_warps=_WARPS,
            num_stages=1,
        )
        for dtype in ("bf16", "fp16")
        for width in (1536, 14336, 28672)
    ]
