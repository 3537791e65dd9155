"""Steps that are run before any request: to measure the memory they take, to compile all they use.

They read and write blocks that nobody holds yet. Their sequences have ids below zero.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from replica.core.plan import SamplingParams, SequenceSlice, StepPlan

# Each filter is on, none of the rows is greedy: the most work.
_SAMPLING = SamplingParams(temperature=1.0, top_k=50, top_p=0.9, min_p=0.01)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """How large the steps may be.

    Attributes:
        tokens: Of a step; at least `sequences`.
        sequence_tokens: Of one sequence.
        num_blocks: Tables name blocks below this; several sequences may name the same.
    """

    tokens: int
    sequences: int
    sequence_tokens: int
    block_size: int
    num_blocks: int


def largest_step(limits: Rehearsal) -> StepPlan:
    """As many tokens and sequences as may be, the first sequences the longest, all sampled."""
    assert limits.tokens >= limits.sequences > 0
    left, slices = limits.tokens, []
    for others in range(limits.sequences - 1, -1, -1):
        count = min(left - others, limits.sequence_tokens)
        left -= count
        slices.append(_slice(others, count, limits))
    return StepPlan(slices=slices)


def all_kinds(limits: Rehearsal) -> Iterator[StepPlan]:
    """Steps that use each kernel in each variant that a step may need: decodes of one to many
    sequences, prefills of one to many tokens, alone and together."""
    for tokens in _doubling(limits.tokens):
        for sequences in {1, min(2, tokens, limits.sequences), min(tokens, limits.sequences)}:
            yield largest_step(replace(limits, tokens=tokens, sequences=sequences))


def _doubling(most: int) -> Iterator[int]:
    """1, 2, 4, … and `most`."""
    count = 1
    while count < most:
        yield count
        count *= 2
    yield most


def _slice(number: int, count: int, limits: Rehearsal) -> SequenceSlice:
    blocks = -(-count // limits.block_size)
    return SequenceSlice(
        sequence_id=-1 - number,
        token_ids=[0] * count,
        start=0,
        block_table=[block % limits.num_blocks for block in range(blocks)],
        sampling=_SAMPLING,
    )
