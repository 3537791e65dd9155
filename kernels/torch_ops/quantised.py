"""Products with weights of 8 or 4 bits: activations stay as they are, weights are scaled."""

import torch


def matmul_int8(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """y = x · Wᵀ with W[c, i] = weight[c, i] · scales[c].

    Args:
        x: [tokens, inner], any float dtype.
        weight: [columns, inner] int8.
        scales: [columns] fp32.

    Returns:
        [tokens, columns] in x's dtype; summed in fp32.
    """
    assert weight.dtype == torch.int8
    return _scaled(x, weight, scales)


def matmul_fp8(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The same with a weight of float8_e4m3fn.

    Source of the format: Micikevicius et al. 2022, arXiv:2209.05433.
    """
    assert weight.dtype == torch.float8_e4m3fn
    return _scaled(x, weight, scales)


def _scaled(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    assert x.shape[1] == weight.shape[1]
    assert scales.shape == weight.shape[:1]
    return ((x.float() @ weight.float().T) * scales.float()).to(x.dtype)


def matmul_int4(
    x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor
) -> torch.Tensor:
    """y = x · Wᵀ with W[c, i] = (q[c, i] - zeros[c, g]) · scales[c, g], g the group of input i.

    A group is `inner` / groups inputs that follow one another. Its q, 0 to 15, are packed two a
    byte: byte j of a group has input j in its low half and input j + size / 2 in its high half,
    so that both halves of a run of bytes are runs of inputs.

    Args:
        x: [tokens, inner], any float dtype.
        weight: [columns, inner / 2] uint8.
        scales: [columns, groups] fp32.
        zeros: [columns, groups] uint8, 0 to 15.

    Returns:
        [tokens, columns] in x's dtype; summed in fp32.

    Source: Frantar et al. 2022, arXiv:2210.17323 (weights in groups); Lin et al. 2023,
    arXiv:2306.00978.
    """
    columns, groups = scales.shape
    inner = x.shape[1]
    assert weight.dtype == zeros.dtype == torch.uint8
    assert zeros.shape == scales.shape
    assert weight.shape == (columns, inner // 2)
    assert inner % (2 * groups) == 0
    halves = weight.view(columns, groups, -1)
    q = torch.cat([halves & 15, halves >> 4], dim=-1).float()
    wide = (q - zeros.float().unsqueeze(-1)) * scales.float().unsqueeze(-1)
    return (x.float() @ wide.view(columns, inner).T).to(x.dtype)
