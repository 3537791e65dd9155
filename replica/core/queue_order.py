"""In which order prompts are computed: a small interface, and first come first served."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Protocol

from replica.core.sequence import Sequence


def arrival_of(sequence: Sequence) -> int:
    return sequence.arrival


class QueueOrder(Protocol):
    """The sequences that wait, which is next, and how urgent it is beside prompts that run."""

    def add(self, sequence: Sequence) -> None:
        """It waits from now on: it is new, or was preempted."""
        ...

    def remove(self, sequence: Sequence) -> None:
        """It waits no more: it is admitted, or was aborted."""
        ...

    def candidates(self, now: float) -> Iterator[Sequence]:
        """Those that wait, the next one first. Each that was given may be removed; nothing else
        may change meanwhile.

        Args:
            now: Seconds, on the clock of `Sequence.arrived_s`.
        """
        ...

    def urgency(self, sequence: Sequence, now: float) -> float:
        """Of one that waits, or of a prompt that runs and is not computed yet: lower is first."""
        ...

    def reserve(self, sequence: Sequence) -> None:
        """A candidate does not fit, and holds up those after it: while nothing comes free and
        nobody new arrives, it stays the next."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sequence]: ...

    def check(self) -> None: ...


class FirstComeFirstServed:
    """Oldest first, the preempted among the others."""

    def __init__(self) -> None:
        self._waiting: list[Sequence] = []  # by arrival

    def add(self, sequence: Sequence) -> None:
        insort(self._waiting, sequence, key=arrival_of)

    def remove(self, sequence: Sequence) -> None:
        take(self._waiting, sequence)

    def candidates(self, now: float) -> Iterator[Sequence]:
        return undisturbed(self._waiting)

    def urgency(self, sequence: Sequence, now: float) -> float:
        return sequence.arrival

    def reserve(self, sequence: Sequence) -> None:
        """The oldest is the next one anyway."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._waiting)

    def check(self) -> None:
        check_sorted(self._waiting)


def take(by_arrival: list[Sequence], sequence: Sequence) -> None:
    """Takes it out, in O(log n) comparisons."""
    index = bisect_left(by_arrival, sequence.arrival, key=arrival_of)
    assert by_arrival[index] is sequence
    del by_arrival[index]


def undisturbed(by_arrival: list[Sequence]) -> Iterator[Sequence]:
    """All of them, though each that was given may be taken out; no copy is made."""
    index = 0
    while index < len(by_arrival):
        sequence = by_arrival[index]
        yield sequence
        if index < len(by_arrival) and by_arrival[index] is sequence:
            index += 1


def check_sorted(by_arrival: list[Sequence]) -> None:
    arrivals = [one.arrival for one in by_arrival]
    assert arrivals == sorted(set(arrivals))
