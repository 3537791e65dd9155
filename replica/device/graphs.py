"""Decode steps recorded once for some batch sizes and replayed: the host launches one thing a step.

A graph computes on the memory it was recorded with. So all sizes share one set of inputs, as long
as the largest, and a step of fewer sequences than its graph has is padded with rows that belong to
nobody: no context, a slot that nothing reads, a token that is dropped.

Source: CUDA programming guide, "CUDA Graphs"; torch.cuda.CUDAGraph.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch

from replica.device.batch import GIVEN
from replica.device.packing import Array, Layout, host_memory

Inputs = Mapping[str, torch.Tensor]
Run = Callable[[Inputs], None]

_SIZES_APART = 8  # of sizes beyond the first few powers of two
_SIZES_APART_FROM_256 = 16


class Recorder(Protocol):
    """Turns work into something that does the same work again, on the same memory."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]: ...


class CudaRecorder:
    """CUDA graphs that share one pool of memory, as only one runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            run()
        return graph.replay


def graph_sizes(sequences_max: int) -> list[int]:
    """Batch sizes to record, largest first: a step is padded by an eighth at most, from 64 on."""
    sizes = {1, 2, 4, sequences_max}
    sizes.update(range(_SIZES_APART, min(sequences_max, 256) + 1, _SIZES_APART))
    sizes.update(range(256, sequences_max + 1, _SIZES_APART_FROM_256))
    return sorted((size for size in sizes if size <= sequences_max), reverse=True)


class DecodeGraphs:
    """Recorded decode steps, and the inputs they read."""

    def __init__(
        self,
        recorder: Recorder,
        sizes: Sequence[int],
        *,
        device: torch.device,
        nobodys_row: int,
        nobodys_slot: int,
    ) -> None:
        """
        Args:
            sizes: Batch sizes, largest first.
            nobodys_row: A row of the block tables for padding.
            nobodys_slot: Where the KV of padding goes.
        """
        assert sizes[0] == max(sizes)
        self._recorder = recorder
        self._sizes = sizes
        self._device = device
        self._padding: dict[str, tuple[type[np.generic], float]] = {
            "token_ids": (np.int64, 0),
            "sources": (np.int64, GIVEN),
            "positions": (np.int64, 0),
            "slots": (np.int64, nobodys_slot),
            "table_rows": (np.int64, nobodys_row),
            "lengths": (np.int32, 0),
            "temperatures": (np.float32, 0),
            "top_k": (np.int64, 1),
            "top_p": (np.float32, 1),
            "min_p": (np.float32, 0),
            "seeds": (np.int64, 0),
            "next_positions": (np.int64, 0),
        }
        largest = sizes[0]
        self._layout = Layout({name: (kind, largest) for name, (kind, _) in self._padding.items()})
        self._memory = torch.zeros(self._layout.num_bytes, dtype=torch.uint8, device=device)
        self._inputs = self._layout.tensors(self._memory)
        self._replays: dict[int, Callable[[], None]] = {}
        self._last_size = sizes[0]

    @property
    def sequences_max(self) -> int:
        """Sequences in one step at most."""
        return self._sizes[0]

    def record(self, run: Run, progress: Callable[[float], None]) -> None:
        """Records `run` at every size; it is called twice for each, the first time to compile.

        Args:
            run: Computes a step from inputs that are as long as a size. It must launch the same
                work whatever the inputs hold, and never wait for the device.
            progress: Told the fraction done.
        """
        self._fill(0, {})
        for done, size in enumerate(self._sizes):
            inputs = {name: one[:size] for name, one in self._inputs.items()}
            run(inputs)
            self._replays[size] = self._recorder.record(partial(run, inputs))
            progress((done + 1) / len(self._sizes))

    def replay(self, arrays: Mapping[str, Array]) -> None:
        """Computes one step.

        Args:
            arrays: Of `batch.decode_arrays` and `batch.sampling_arrays`, all of one length.
        """
        count = len(arrays["token_ids"])
        size = min(size for size in self._sizes if size >= count)
        self._fill(count, arrays)
        self._last_size = size
        self.repeat()

    def repeat(self) -> None:
        """The last step's work once more, on the same inputs."""
        self._replays[self._last_size]()

    def _fill(self, count: int, arrays: Mapping[str, Array]) -> None:
        memory = host_memory(self._layout.num_bytes, self._device)
        for name, view in self._layout.arrays(memory).items():
            if count:
                view[:count] = arrays[name]
            view[count:] = self._padding[name][1]
        self._memory.copy_(memory, non_blocking=True)
