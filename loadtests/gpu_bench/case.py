"""One operation at one shape: its arguments, what it must move, its target, its rivals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch

from kernels.floors import H100, Work

Arguments = dict[str, Any]
Run = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Share:
    """A target: at least so much of the ceiling that was measured on this GPU."""

    least: float


@dataclass(frozen=True, slots=True)
class Rival:
    """A target: no slower than what torch itself has for it."""


@dataclass(frozen=True, slots=True)
class Case:
    """One operation at one shape.

    Attributes:
        operation: Its name in the backends.
        shape: For the table.
        work: What it must move and compute.
        make: Its arguments, anew at each call, of a dtype on a device.
        changed: Names of arguments that it writes: compared like its result.
        exact: Its result is whole numbers that must be the reference's own.
        target: What it should reach.
        rivals: What else does the same, by name. Each is given the arguments and returns what is
            timed: layouts that a rival wants otherwise are not held against it.
    """

    operation: str
    shape: str
    work: Work
    make: Callable[[torch.dtype, torch.device], Arguments]
    changed: Sequence[str] = ()
    exact: bool = False
    target: Share | Rival = Rival()
    rivals: Mapping[str, Callable[[Arguments], Run]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.operation} {self.shape}"

    @property
    def bound(self) -> str:
        """Of an H100, what its floor comes from: "memory" or "arithmetic"."""
        moving_s = self.work.bytes / H100.bytes_per_s
        return (
            "memory" if moving_s >= self.work.operations / H100.operations_per_s else "arithmetic"
        )

    def call(self, backend: ModuleType, arguments: Arguments) -> Any:
        return getattr(backend, self.operation)(**arguments)

    def argument_bytes(self) -> int:
        """Of one set of arguments in bf16; none is made."""
        made = self.make(torch.bfloat16, torch.device("meta"))
        return sum(one.nbytes for one in made.values() if isinstance(one, torch.Tensor))


def random(*shape: int) -> Callable[[torch.dtype, torch.device], torch.Tensor]:
    """Makes standard normal numbers in the dtype itself: a copy in fp32 may not fit."""
    return lambda dtype, device: torch.randn(shape, dtype=dtype, device=device)
