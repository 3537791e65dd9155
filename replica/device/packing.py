"""Many small arrays in one piece of memory, so that a step's inputs take one copy to the device.

host (pinned)   │ token_ids │ positions │ lengths │ …      each begins at a multiple of 256 bytes
                    one copy, in the order of the device's work
device          │ token_ids │ positions │ lengths │ …      views of the same shapes
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, np.dtype[Any]]

_ALIGNMENT_BYTES = 256  # as torch aligns its own: no kernel may see another alignment
_DTYPES = {
    np.dtype(np.int64): torch.int64,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.float32): torch.float32,
}


class Layout:
    """Where each of some one-dimensional arrays lies."""

    def __init__(self, lengths: Mapping[str, tuple[type[np.generic], int]]) -> None:
        """
        Args:
            lengths: Number format and number of elements, by name.
        """
        self._places: dict[str, tuple[np.dtype[Any], int, int]] = {}
        self.num_bytes = 0
        for name, (kind, count) in lengths.items():
            dtype = np.dtype(kind)
            self._places[name] = (dtype, self.num_bytes, count)
            used = dtype.itemsize * count
            self.num_bytes += -(-used // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES

    def arrays(self, memory: torch.Tensor) -> dict[str, Array]:
        """Views of `memory`, [num_bytes] uint8 on the host."""
        whole = memory.numpy()
        return {
            name: whole[start : start + dtype.itemsize * count].view(dtype)
            for name, (dtype, start, count) in self._places.items()
        }

    def tensors(self, memory: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views of `memory`, [num_bytes] uint8 on any device."""
        return {
            name: memory[start : start + dtype.itemsize * count].view(_DTYPES[dtype])
            for name, (dtype, start, count) in self._places.items()
        }


def host_memory(num_bytes: int, device: torch.device) -> torch.Tensor:
    """[num_bytes] uint8 that `device` can copy from while the host goes on.

    torch keeps pinned memory that is let go until the copies from it are done.
    """
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")


def upload(arrays: Mapping[str, Array], device: torch.device) -> dict[str, torch.Tensor]:
    """The same arrays on `device`, by one copy that the host does not wait for."""
    layout = Layout({name: (array.dtype.type, len(array)) for name, array in arrays.items()})
    memory = host_memory(layout.num_bytes, device)
    for name, view in layout.arrays(memory).items():
        view[:] = arrays[name]
    return layout.tensors(memory.to(device, non_blocking=True))
