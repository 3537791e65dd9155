"""What a simulated device answers: words, by a hash of all tokens before, kept in blocks like KV.

    block          │ 0        │ 1        │ 2
    tokens         │ a b c d  │ e f g h  │ i j
    kept of it     │ #(a…d)   │ #(a…h)   │ #(a…j)    → the word after j

So the same prompt has the same answer, cached or not, in one piece or in several; and a wrong
block table gives another one.
"""

from array import array
from collections.abc import Sequence

from replica.core.plan import SequenceSlice, StepPlan, StepResult

_SPAN = (1 << 64) - 1
_FACTOR = 6364136223846793005  # Knuth's MMIX multiplier


class Answers:
    """The answers of one device, and what its blocks hold of the tokens before."""

    def __init__(
        self,
        words: Sequence[int],
        *,
        num_blocks: int,
        block_size: int,
        end: int | None = None,
        tokens_mean: int | None = None,
    ) -> None:
        """
        Args:
            words: The tokens that answers are made of.
            end: The token that ends an answer; one in `tokens_mean` is it. None: no token is.
        """
        assert words
        assert (end is None) == (tokens_mean is None)
        self._words = tuple(words)
        self._block_size = block_size
        self._end, self._tokens_mean = end, tokens_mean
        self._kept = array("Q", [0]) * num_blocks
        # What the last step picked: the next one may have been planned without knowing it.
        self._picked: dict[int, int] = {}

    def of(self, plan: StepPlan) -> StepResult:
        """What the plan's step picks; plans come in the order in which they run."""
        picked = [self._next(one) for one in plan.slices]
        self._picked = {
            one.sequence_id: token
            for one, token in zip(plan.slices, picked, strict=True)
            if token is not None
        }
        return StepResult(sampled=picked)

    def _next(self, one: SequenceSlice) -> int | None:
        state = self._take(one, one.token_ids or (self._picked[one.sequence_id],))
        if one.sampling is None:
            return None
        choice = _mixed(state)
        if self._tokens_mean is not None and choice % self._tokens_mean == 0:
            return self._end
        return self._words[(choice >> 32) % len(self._words)]

    def _take(self, one: SequenceSlice, token_ids: Sequence[int]) -> int:
        """The hash of the sequence up to these tokens; it is kept in each block they are in."""
        size, at = self._block_size, one.start
        state = self._kept[one.block_table[(at - 1) // size]] if at else 0
        end = at + len(token_ids)
        while at < end:
            stop = min(end, (at // size + 1) * size)
            for token in token_ids[at - one.start : stop - one.start]:
                state = (state * _FACTOR + token + 1) & _SPAN
            self._kept[one.block_table[at // size]] = state
            at = stop
        return state


def _mixed(state: int) -> int:
    """Every bit of it depends on every bit of `state`.

    Source: splitmix64's finaliser (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195).
    """
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _SPAN
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _SPAN
    return state ^ (state >> 31)
