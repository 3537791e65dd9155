"""How many KV blocks the device's memory holds beside weights and the work of a step."""

from collections.abc import Callable
from typing import Protocol

import torch

_GIB = 2**30


class DeviceMemory(Protocol):
    """What a device tells about its memory, in bytes."""

    @property
    def total_bytes(self) -> int: ...

    @property
    def used_bytes(self) -> int:
        """By us and by others, but not what is only kept to be given out again."""

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """The most that `run` holds at one time, beyond what is held before."""


class CudaMemory:
    """A GPU's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @property
    def total_bytes(self) -> int:
        return torch.cuda.mem_get_info(self._device)[1]

    @property
    def used_bytes(self) -> int:
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free

    def peak_bytes(self, run: Callable[[], object]) -> int:
        torch.cuda.synchronize(self._device)
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        run()
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - before


def blocks_beside(
    memory: DeviceMemory, *, fraction: float, step_bytes: int, bytes_per_block: int
) -> int:
    """KV blocks that fit.

    Args:
        memory: With the weights on the device.
        fraction: Of the whole memory, that may be used, by whomever.
        step_bytes: What steps need beside weights and cache.

    Raises:
        ValueError: not one block fits.
    """
    budget = int(memory.total_bytes * fraction) - memory.used_bytes - step_bytes
    if budget < bytes_per_block:
        raise ValueError(
            f"engine.memory_fraction: {fraction} of {memory.total_bytes / _GIB:.1f} GiB leaves no "
            f"room for a KV cache beside {memory.used_bytes / _GIB:.1f} GiB in use and "
            f"{step_bytes / _GIB:.1f} GiB for a step's work"
        )
    return budget // bytes_per_block
