"""Packs whole numbers of four bits as `kernels.torch_ops.matmul_int4` reads them."""

import torch


def pack_int4(q: torch.Tensor, groups: int) -> torch.Tensor:
    """[columns, inner] of 0 to 15 to [columns, inner / 2] uint8."""
    columns, inner = q.shape
    half = inner // groups // 2
    grouped = q.view(columns, groups, 2, half)
    packed = grouped[:, :, 0] | (grouped[:, :, 1] << 4)
    return packed.reshape(columns, inner // 2).to(torch.uint8)
