"""Root-mean-square normalisation, with and without the residual addition before it."""

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """y = x / sqrt(mean(x²) + eps) · weight, over the last axis.

    Args:
        x: [tokens, hidden], any float dtype.
        weight: [hidden], in x's dtype.
        eps: Added to the mean square; dimensionless.

    Returns:
        [tokens, hidden] in x's dtype; accumulated in fp32.

    Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.
    """
    assert x.dim() == 2, x.shape
    assert weight.shape == x.shape[1:], (x.shape, weight.shape)
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True).add_(eps))
    return (wide * scale).to(x.dtype).mul_(weight)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(x + residual), x + residual): the two things a layer needs next.

    Args:
        x, residual: [tokens, hidden], of one dtype. `residual` is overwritten with the sum.
        weight: [hidden].
        eps: Added to the mean square.
    """
    assert x.shape == residual.shape
    assert x.dtype == residual.dtype
    total = residual.add_(x)
    return rms_norm(total, weight, eps), total
