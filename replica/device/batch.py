"""A step's plan as flat arrays: pure, no device. Slices of one token come first: they are decodes.

rows      │ decode │ decode │ prefill …………… │ prefill ……… │
tokens    │ t      │ t      │ t  t  t  t  t  │ t  t  t     │
samples     yes      yes      no                yes            → one token each
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from replica.core.plan import SamplingParams, SequenceSlice, StepPlan, StepResult
from replica.device.packing import Array

GIVEN = -1
"""The source of a token that the plan itself tells."""

_INT64_SPAN = 1 << 64
_GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Arrangement:
    """A plan's slices in the order of the batch.

    Attributes:
        places: Of each slice in the plan.
        decodes: How many of the slices, from the first, have one token.
        samples: Rows of the slices whose next token is picked: every decode, so that all steps of
            decodes are alike, and prefills that ask for it.
    """

    slices: Sequence[SequenceSlice]
    places: Sequence[int]
    decodes: int
    samples: Sequence[int]

    def sources(self) -> dict[int, int]:
        """Where among the sampled tokens each sequence's is."""
        return {self.slices[row].sequence_id: at for at, row in enumerate(self.samples)}

    def result(self, tokens: Sequence[int]) -> StepResult:
        """What the sampled tokens mean, in the order of the plan."""
        sampled: list[int | None] = [None] * len(self.slices)
        for row, token in zip(self.samples, tokens, strict=True):
            if self.slices[row].sampling is not None:
                sampled[self.places[row]] = token
        return StepResult(sampled=sampled)


def arrange(plan: StepPlan) -> Arrangement:
    """Decodes first, each kind in the order of the plan."""
    places = sorted(range(len(plan.slices)), key=lambda i: plan.slices[i].num_tokens > 1)
    slices = [plan.slices[place] for place in places]
    return Arrangement(
        slices=slices,
        places=places,
        decodes=sum(one.num_tokens == 1 for one in slices),
        samples=[
            row for row, one in enumerate(slices) if one.num_tokens == 1 or one.sampling is not None
        ],
    )


def decode_arrays(
    slices: Sequence[SequenceSlice],
    table_rows: Sequence[int],
    sources: Mapping[int, int],
    block_size: int,
) -> dict[str, Array]:
    """What the device must know of slices of one token.

    Args:
        table_rows: Each one's row in the block tables.
        sources: Where among the tokens sampled last each sequence's is.

    Returns:
        token_ids [n] int64, 0 where unknown; sources [n] int64, GIVEN where it is known;
        positions, slots, table_rows [n] int64; lengths [n] int32.
    """
    starts = [one.start for one in slices]
    return {
        "token_ids": np.array(
            [one.token_ids[0] if one.token_ids else 0 for one in slices], np.int64
        ),
        "sources": np.array(
            [GIVEN if one.token_ids else sources[one.sequence_id] for one in slices], int
        ),
        "positions": np.array(starts, np.int64),
        "slots": np.array(
            [
                one.block_table[one.start // block_size] * block_size + one.start % block_size
                for one in slices
            ],
            int,
        ),
        "table_rows": np.array(table_rows, np.int64),
        "lengths": np.array(starts, np.int32) + np.int32(1),
    }


def prefill_arrays(
    slices: Sequence[SequenceSlice], table_rows: Sequence[int], block_size: int
) -> dict[str, Array]:
    """What the device must know of slices of several tokens.

    Returns:
        token_ids, positions, slots [tokens] int64; table_rows [n] int64; offsets [n + 1] int32;
        lengths [n] int32; logit_rows int64, the last token of each that samples.
    """
    counts = np.array([one.num_tokens for one in slices], np.int64)
    starts = np.array([one.start for one in slices], np.int64)
    ends = counts.cumsum()
    return {
        "token_ids": np.concatenate([np.asarray(one.token_ids, np.int64) for one in slices]),
        # Token t of all is token t - (ends - counts) of its slice.
        "positions": np.arange(ends[-1]) + np.repeat(starts - (ends - counts), counts),
        "slots": np.concatenate([_slots(one, block_size) for one in slices]),
        "table_rows": np.array(table_rows, np.int64),
        "offsets": np.concatenate([[0], ends]).astype(np.int32),
        "lengths": (starts + counts).astype(np.int32),
        "logit_rows": ends[[one.sampling is not None for one in slices]] - 1,
    }


def _slots(one: SequenceSlice, block_size: int) -> Array:
    positions = np.arange(one.start, one.start + one.num_tokens)
    blocks = np.asarray(one.block_table, np.int64)[positions // block_size]
    return blocks * block_size + positions % block_size


def sampling_arrays(slices: Sequence[SequenceSlice], vocab_size: int) -> dict[str, Array]:
    """How to pick the token after each slice; greedily where none is wanted.

    Returns:
        What `kernels.torch_ops.sample` takes, by its arguments' names; its `positions` are
        `next_positions`.
    """
    params = [one.sampling or _GREEDY for one in slices]
    return {
        "temperatures": np.array([one.temperature for one in params], np.float32),
        "top_k": np.array([min(one.top_k or vocab_size, vocab_size) for one in params], np.int64),
        "top_p": np.array([one.top_p for one in params], np.float32),
        "min_p": np.array([one.min_p for one in params], np.float32),
        "seeds": np.array([one.seed % _INT64_SPAN for one in params], np.uint64).view(np.int64),
        "next_positions": np.array([one.start + one.num_tokens for one in slices], np.int64),
    }
