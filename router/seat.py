"""A worker's place among the workers of one router: its number, and the memory they share."""

import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from router.config import ModelConfig
from router.core.lease_board import LeaseBoard, board_bytes, clear_row


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """
    Attributes:
        boards: Of each model, by its name.
        admin_socket: Where this worker answers the supervisor: a Unix socket's path.
        on_ready: To be called once it takes requests.
    """

    number: int
    boards: dict[str, LeaseBoard]
    admin_socket: Path
    on_ready: Callable[[], None]


class SharedBoards:
    """The boards of all models, one after the other in one piece of memory."""

    def __init__(self, models: Sequence[ModelConfig], workers: int, descriptor: int) -> None:
        """
        Args:
            descriptor: Of the memory, from `share_memory` of as many `bytes_needed`.
        """
        self._models = models
        self._workers = workers
        self._memory = memoryview(mmap.mmap(descriptor, bytes_needed(models, workers)))

    def of_worker(self, number: int) -> dict[str, LeaseBoard]:
        """What worker `number` writes and reads."""
        return {
            model.name: LeaseBoard(
                memory, [one.id for one in model.replicas], workers=self._workers, worker=number
            )
            for model, memory in self._parts()
        }

    def clear(self, number: int) -> None:
        """Worker `number` has ended, and its leases with it."""
        for model, memory in self._parts():
            clear_row(memory, len(model.replicas), number)

    def _parts(self) -> list[tuple[ModelConfig, memoryview]]:
        parts, start = [], 0
        for model in self._models:
            end = start + board_bytes(self._workers, len(model.replicas))
            parts.append((model, self._memory[start:end]))
            start = end
        return parts


def bytes_needed(models: Sequence[ModelConfig], workers: int) -> int:
    return sum(board_bytes(workers, len(model.replicas)) for model in models)


def share_memory(size: int) -> int:
    """A descriptor of so much memory, zeros, for children to inherit."""
    descriptor = os.memfd_create("warmroute-leases")
    os.ftruncate(descriptor, size)
    return descriptor
