"""A step as the scheduler plans it, slice by slice, and until its result is known."""

from dataclasses import dataclass, field

from replica.core.plan import SequenceSlice
from replica.core.sequence import Sequence


@dataclass(slots=True)
class Draft:
    """
    Attributes:
        budget: Tokens it may compute beside those it does.
        slices, sequences: What it computes, and of whom.
        pending: Names of the blocks that it fills, or that running prompts fill next.
    """

    block_size: int
    budget: int
    slices: list[SequenceSlice] = field(default_factory=list)
    sequences: list[Sequence] = field(default_factory=list)
    pending: set[int] = field(default_factory=set)

    def add(self, sequence: Sequence) -> None:
        """Computes its next tokens, as many as the budget allows."""
        count = min(sequence.num_unplanned, self.budget)
        if count == 0:
            return
        start, end = sequence.num_planned, sequence.num_planned + count
        known = min(end, sequence.num_tokens)  # an unknown token's block has no name yet
        self._will_fill(sequence, start // self.block_size, known // self.block_size)
        sampling = sequence.request.sampling if count == sequence.num_unplanned else None
        num_blocks = -(-end // self.block_size)
        self.slices.append(
            SequenceSlice(
                sequence_id=sequence.request.sequence_id,
                token_ids=sequence.token_ids[start:end],
                start=start,
                block_table=sequence.blocks[:num_blocks],
                sampling=sampling,
                num_kept_blocks=sequence.num_kept_blocks,
            )
        )
        self.sequences.append(sequence)
        sequence.num_planned = end
        sequence.num_unknown += sampling is not None
        sequence.num_kept_blocks = num_blocks
        self.budget -= count

    def will_compute_more(self, prompt: Sequence) -> None:
        """It runs: its next block is filled soon, if not by this step."""
        first = prompt.num_planned // self.block_size
        self._will_fill(prompt, first, min(first + 1, prompt.num_tokens // self.block_size))

    def _will_fill(self, sequence: Sequence, first: int, end: int) -> None:
        if sequence.findable and first < end:
            keys = sequence.keys(end, self.block_size)
            self.pending.update(key.hash for key in keys[first:end])
