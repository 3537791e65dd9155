"""The ranks as a group of torch.distributed: NCCL between GPUs, gloo between CPUs."""

import os
import socket
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store, TCPStore

from replica.parallel.shard import columns_of

# How much later than another a rank may come to an operation: one of them may be compiling.
_LAG = timedelta(minutes=5)
_LOOPBACK = "127.0.0.1"

# torch 2.13 has renamed it, and warns of the old name.
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def open_store(size: int) -> TCPStore:
    """Where the ranks find each other, on a free port of the loopback; for rank 0."""
    # torch would listen on every address.
    listener = socket.create_server((_LOOPBACK, 0))
    return TCPStore(
        _LOOPBACK,
        listener.getsockname()[1],
        size,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def find_store(port: int, size: int) -> TCPStore:
    """The store that rank 0 opened."""
    return TCPStore(_LOOPBACK, port, size, is_master=False, wait_for_workers=False)


class GroupShard:
    """A rank of torch.distributed's default group, which it joins; one in a process.

    Its operations on tensors run on the current stream, do not wait for the device, and may be
    captured in a CUDA graph.
    """

    def __init__(
        self,
        store: Store,
        *,
        rank: int,
        size: int,
        device: torch.device,
        minimum: Callable[[int], int],
    ) -> None:
        """Waits for the others.

        Args:
            device: This rank's own.
            minimum: See `Shard.minimum`.
        """
        assert 0 <= rank < size
        self.rank = rank
        self.size = size
        self._minimum = minimum
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)
        else:
            # Else gloo listens at the address of the host's name, if that has one.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=_LAG,
            device_id=device if on_gpu else None,
        )
        # NCCL takes its memory now, before anybody measures what is left, and outside any graph.
        self.all_reduce(torch.zeros(1, device=device))

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        assert x.is_contiguous()
        dist.all_reduce(x)
        return x

    def gather_columns(self, x: torch.Tensor, columns: int) -> torch.Tensor:
        rows, width = x.shape
        assert x.is_contiguous()
        assert width == len(columns_of(columns, self.rank, self.size))
        if not rows:
            return x.new_empty((0, columns))
        gathered = x.new_empty((self.size * rows, width))
        _gather(gathered, x)
        pieces = []
        for rank in range(self.size):
            had_before = rank * width - columns_of(columns, rank, self.size).start
            piece = gathered[rank * rows : (rank + 1) * rows]
            pieces.append(piece[:, min(had_before, width) :])
        return torch.cat(pieces, dim=1)

    def minimum(self, value: int) -> int:
        return self._minimum(value)
