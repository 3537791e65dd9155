"""What was in each step and what it took, line by line, in a file.

The simulator's timing is fitted to such files: `python -m loadtests.sim.measure --steps`.
"""

import logging
from math import inf
from pathlib import Path
from typing import IO

import msgspec

from replica.core.plan import StepPlan
from replica.core.timing import Work, work_of

_log = logging.getLogger(__name__)


class StepTime(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the file, as JSON.

    Attributes:
        seconds: From its start, or the end of the step before it, to its result.
        tokens, pairs, decodes, held_tokens: What was in it, as `replica.core.timing` counts.
    """

    seconds: float
    tokens: int
    pairs: float
    decodes: int
    held_tokens: int

    @property
    def work(self) -> Work:
        return 1.0, self.tokens, self.pairs, self.decodes, self.held_tokens


_decoder = msgspec.json.Decoder(StepTime)


def read_step_times(path: Path) -> list[StepTime]:
    """
    Raises:
        OSError: the file cannot be read.
        ValueError: it is no step log; the message names file and line.
    """
    steps = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                steps.append(_decoder.decode(line))
            except msgspec.DecodeError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    return steps


class StepLog:
    """The file; one that can be written no more is told of once, and steps go on."""

    def __init__(self, path: str) -> None:
        """Raises OSError: the file cannot be written; the message names the setting."""
        self._last_end_s = -inf
        try:
            # Unbuffered: a line is there as soon as its step is over, however the engine ends.
            self._file: IO[bytes] | None = Path(path).open("ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise OSError(f"engine.step_log: {path}: {error.strerror}") from None

    def ended(self, plan: StepPlan, begun_s: float, now: float) -> None:
        """The step's result is there; steps end in the order in which they began.

        Args:
            begun_s, now: Seconds, on one clock.
        """
        if self._file is None:
            return
        seconds = now - max(begun_s, self._last_end_s)
        self._last_end_s = now
        _, tokens, pairs, decodes, held = work_of(plan)
        line = StepTime(
            seconds=seconds,
            tokens=int(tokens),
            pairs=pairs,
            decodes=int(decodes),
            held_tokens=int(held),
        )
        try:
            self._file.write(msgspec.json.encode(line) + b"\n")
        except OSError as error:
            name = self._file.name
            _log.warning("engine.step_log: %s: %s; no more steps are logged", name, error)
            self._file.close()
            self._file = None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
