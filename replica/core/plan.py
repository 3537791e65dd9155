"""The contract between scheduler and device: what one engine step computes, and what came out.

The scheduler makes a `StepPlan` (`Scheduler.schedule`), the model runner turns it into a
`StepResult`, the scheduler takes that back (`Scheduler.apply`). Neither knows the other.

Steps run in the order in which they were planned. A device may be given one while the one before
it runs still; then some of its tokens are not known yet:

    schedule n   start n   schedule n+1   start n+1   apply n   schedule n+2 …
                              └ of a sequence that step n generates for: its token is what n picks
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

STEPS_IN_FLIGHT_MAX = 2
"""Plans whose results are not known yet: an unknown token is always one of the plan before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to pick the next token of one sequence.

    Attributes:
        temperature: 0 is greedy; else logits are divided by it.
        top_k: Keep the k likeliest tokens; None keeps all.
        top_p: Keep the smallest set of tokens with at least this probability mass, in (0, 1].
        min_p: Keep tokens at least this many times as likely as the likeliest, in [0, 1).
        seed: 64-bit key of the sequence's random stream: the same seed gives the same tokens,
            whatever else is in the batch.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceSlice:
    """The tokens of one sequence that one step computes.

    Attributes:
        sequence_id: Unique within the engine's life.
        token_ids: Tokens at positions [start, start + num_tokens). Empty: one token, which the step
            before this one picks for this sequence and only the device knows.
        start: How many tokens of the sequence have their KV in the cache already.
        block_table: Physical block of every block of the sequence up to and including these
            tokens: position p lives in block_table[p // block_size], slot p % block_size.
        sampling: How to pick the token after the last of these; None while the prompt goes on
            (a chunk that is not the last): then no logits are computed.
        num_kept_blocks: So many of the table's first entries are those of this sequence's slice
            before this one; 0 is always right. Who remembers that table need not look at them.
    """

    sequence_id: int
    token_ids: Sequence[int]
    start: int
    block_table: Sequence[int]
    sampling: SamplingParams | None
    num_kept_blocks: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """One engine step: decodes and prefill chunks together, in any order."""

    slices: Sequence[SequenceSlice]

    @property
    def num_tokens(self) -> int:
        return sum(one.num_tokens for one in self.slices)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """`sampled[i]` is the token picked for `plan.slices[i]`, None where its sampling was None."""

    sampled: Sequence[int | None]


class Step(Protocol):
    """A step that the device has been given."""

    def result(self) -> StepResult:
        """What it gave; waits until it has run."""


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """One whose result was known at once."""

    known: StepResult

    def result(self) -> StepResult:
        return self.known
