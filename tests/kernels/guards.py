"""Tensors with a margin of NaN about them: writes that go astray show, and so do reads."""

from typing import Any

import torch

# Longer than any block of columns that a test's kernel masks; keeps pointers aligned.
_MARGIN = 4096


class Guards:
    """Makes guarded tensors, and knows whether all their margins are still untouched."""

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []

    def empty(self, *shape: Any, dtype: torch.dtype, device: Any = None) -> torch.Tensor:
        """Like `torch.empty`, but NaN within and without."""
        size = torch.Size(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        count = size.numel()
        buffer = torch.full((count + 2 * _MARGIN,), torch.nan, dtype=dtype, device=device)
        self._buffers.append(buffer)
        return buffer[_MARGIN : _MARGIN + count].view(size)

    def empty_like(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.empty_like(tensor).copy_(tensor)

    def check(self) -> None:
        for buffer in self._buffers:
            assert buffer[:_MARGIN].isnan().all(), "written before the start"
            assert buffer[-_MARGIN:].isnan().all(), "written past the end"
