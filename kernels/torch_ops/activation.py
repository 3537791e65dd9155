"""The gated activation of a Llama MLP."""

import torch
from torch.nn import functional


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up, where silu(x) = x / (1 + exp(-x)).

    Args:
        gate_up: [tokens, 2 · intermediate], gate in the first half of each row.

    Returns:
        [tokens, intermediate] in gate_up's dtype.

    Source: Shazeer 2020, arXiv:2002.05202 (SwiGLU), eq. 5.
    """
    assert gate_up.dim() == 2, gate_up.shape
    assert gate_up.shape[1] % 2 == 0, gate_up.shape
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)
