"""What is done with a case: compared with the reference in float64, or timed beside its rivals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, Protocol

import torch

from kernels import torch_ops
from kernels.floors import H100
from loadtests.gpu_bench.case import Arguments, Case, Rival, Run, Share
from loadtests.gpu_bench.results import Row, Verdict, one_line

# Of the largest number in its row of the result: bf16 has 8 bits, fp16 11; kernels add in fp32.
_TOLERANCES = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-4}
_DTYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
# Five times the last cache of an H100: when an input's turn comes again, it is not there any more.
_ROTATED_BYTES = 256 * 2**20
_ROTATIONS_MAX = 128
_SPARE_BYTES = 4 * 2**30  # results, scratch, what rivals make of the arguments


@dataclass(frozen=True, slots=True)
class Bench:
    """Where cases run.

    Attributes:
        device: Where their arguments lie.
        backend: What is checked and timed; with `kernels.torch_ops`' names.
        median_s: Seconds of one of several runs, and what must be said about it.
        free_bytes: Of the device's memory.
        ceilings: As measured on it: "memory" in bytes/s, "arithmetic" in operations/s.
    """

    device: torch.device
    backend: ModuleType
    median_s: Callable[[Sequence[Run]], tuple[float, str]]
    free_bytes: Callable[[], float]
    ceilings: Mapping[str, float]


class Unmeasurable(Exception):
    """Not on this machine; the message says why."""


class Measurement(Protocol):
    """One case of a section: makes one row of the table."""

    @property
    def name(self) -> str:
        """No other of its section has it."""

    def run(self, bench: Bench, section: str) -> Row:
        """
        Raises:
            Unmeasurable: then the row says that it was skipped, and why.
        """


@dataclass(frozen=True, slots=True)
class Check:
    """Compares a case with the reference in float64, in one dtype."""

    case: Case
    dtype: torch.dtype = torch.bfloat16

    @property
    def name(self) -> str:
        return f"{self.case.name} {_DTYPE_NAMES[self.dtype]}"

    def run(self, bench: Bench, section: str) -> Row:
        error = difference(self.case, bench.backend, self.dtype, bench.device)
        allowed = 0.0 if self.case.exact else _TOLERANCES[self.dtype]
        return Row(
            section=section,
            name=self.name,
            operation=self.case.operation,
            shape=f"{self.case.shape}, {_DTYPE_NAMES[self.dtype]}",
            verdict=Verdict.RIGHT if error <= allowed else Verdict.WRONG,  # of NaN: wrong
            reached=f"{error:.0%} other tokens" if self.case.exact else f"off by {error:.1e}",
            target="the same tokens" if self.case.exact else f"≤ {allowed:.0e}",
        )


def difference(case: Case, backend: ModuleType, dtype: torch.dtype, device: torch.device) -> float:
    """The largest error of its result, and of what it changes, as a share of its row's largest
    number; of whole numbers, the share that differ."""
    torch.manual_seed(0)
    ours = case.make(dtype, device)
    exact = {name: _copy(one, None if case.exact else dtype) for name, one in ours.items()}
    found, expected = case.call(backend, ours), case.call(torch_ops, exact)
    if case.exact:
        return float((found != expected).double().mean())
    pairs = list(zip(_tensors(found), _tensors(expected), strict=True))
    pairs += [(ours[name], exact[name]) for name in case.changed]
    return max(_row_error(a.double(), b.double()) for a, b in pairs)


def _copy(one: Any, widened: torch.dtype | None) -> Any:
    if not isinstance(one, torch.Tensor):
        return one
    return one.double() if one.dtype == widened else one.clone()


def _tensors(found: Any) -> Sequence[torch.Tensor]:
    return found if isinstance(found, tuple) else (found,)


def _row_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """NaN if any is; the same infinities are no error, others are an infinite one."""
    largest = expected.masked_fill(expected.isinf(), 0).abs().amax(dim=-1, keepdim=True)
    apart = torch.where(found == expected, 0.0, (found - expected).abs())
    return float((apart / largest.clamp(min=1e-9)).max())


@dataclass(frozen=True, slots=True)
class Timing:
    """Times a case and its rivals on inputs that no cache holds, in bf16."""

    case: Case

    @property
    def name(self) -> str:
        return self.case.name

    def run(self, bench: Bench, section: str) -> Row:
        needed, free = self.case.argument_bytes(), bench.free_bytes()
        copies = min(rotations(self.case), int((free - _SPARE_BYTES) // needed))
        if copies < 1:
            why = f"takes {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
            return self._row(section, Verdict.SKIPPED, notes=why)
        made = [self.case.make(torch.bfloat16, bench.device) for _ in range(copies)]
        runs = [partial(self.case.call, bench.backend, arguments) for arguments in made]
        seconds, note = bench.median_s(runs)
        beside, notes = self._rivals(bench, made)
        return self._judged(section, bench, seconds, beside, [note, *notes])

    def _rivals(
        self, bench: Bench, made: Sequence[Arguments]
    ) -> tuple[dict[str, float], list[str]]:
        """Seconds of those that ran, and what must be said about them and the others."""
        beside: dict[str, float] = {}
        notes = []
        for name, prepare in self.case.rivals.items():
            try:
                beside[name], note = bench.median_s([prepare(arguments) for arguments in made])
                notes.append(f"{name}: {note}" if note else "")
            except (RuntimeError, ValueError) as error:  # not on this GPU, or no memory for it
                notes.append(f"{name} cannot: {one_line(error)}")
        return beside, notes

    def _judged(
        self,
        section: str,
        bench: Bench,
        seconds: float,
        beside: Mapping[str, float],
        notes: Sequence[str],
    ) -> Row:
        case = self.case
        done = case.work.bytes if case.bound == "memory" else case.work.operations
        share = done / seconds / bench.ceilings[case.bound]
        best = min(beside, key=beside.__getitem__, default=None)
        told = [f"{name} {one * 1e6:,.1f} µs" for name, one in beside.items() if name != best]
        return self._row(
            section,
            verdict(case.target, share, seconds, None if best is None else beside[best]),
            us=seconds * 1e6,
            reached=f"{share:.0%} of {case.bound}",
            rival=best or "",
            rival_us=None if best is None else beside[best] * 1e6,
            notes="; ".join(note for note in [*told, *notes] if note),
        )

    def _row(self, section: str, found: Verdict, **measured: Any) -> Row:
        return Row(
            section=section,
            name=self.name,
            operation=self.case.operation,
            shape=self.case.shape,
            verdict=found,
            floor_us=H100.floor_s(self.case.work) * 1e6,
            target=target_text(self.case.target),
            **measured,
        )


def rotations(case: Case) -> int:
    """How many sets of arguments take turns."""
    return min(_ROTATIONS_MAX, max(1, -(-_ROTATED_BYTES // int(case.work.bytes))))


def verdict(target: Share | Rival, share: float, seconds: float, rival_s: float | None) -> Verdict:
    """Whether the target is met; TOLD if it is a rival that could not run."""
    if isinstance(target, Share):
        return Verdict.MET if share >= target.least else Verdict.MISSED
    if rival_s is None:
        return Verdict.TOLD
    return Verdict.MET if seconds <= rival_s else Verdict.MISSED


def target_text(target: Share | Rival) -> str:
    return f"≥ {target.least:.0%}" if isinstance(target, Share) else "≤ rival"
