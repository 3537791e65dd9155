"""A model runner without a model: remembers its KV cache slot by slot and hashes what it reads.

The next token is a hash of the whole history *as read back through the block table*, so a wrong
table, a block given away too early or a cache hit on other content shows up as a wrong token, and
a slot that was never written as a failed assertion.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b

from replica.core.plan import FinishedStep, SamplingParams, SequenceSlice, StepPlan, StepResult

NextToken = Callable[[Sequence[int], SamplingParams], int]


def hashed_token(vocabulary: int) -> NextToken:
    """A next token that depends on every token before it, in order."""

    def next_token(history: Sequence[int], sampling: SamplingParams) -> int:
        text = ",".join(map(str, history)) + f"|{sampling.seed}"
        return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") % vocabulary

    return next_token


def expected_tokens(
    prompt: Sequence[int], sampling: SamplingParams, count: int, next_token: NextToken
) -> list[int]:
    """What a sequence must generate, worked out without blocks or batches."""
    history = list(prompt)
    for _ in range(count):
        history.append(next_token(history, sampling))
    return history[len(prompt) :]


class FakeRunner:
    """`ModelRunner` over a dictionary: (block, offset) → (token, hash of its prefix)."""

    compiled_kernels = 0

    def __init__(
        self,
        block_size: int,
        next_token: NextToken | None = None,
        vocab_size: int = 512,
        *,
        num_blocks: int = 64,
        steps_in_flight_max: int = 1,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.steps_in_flight_max = steps_in_flight_max
        self.vocab_size = vocab_size
        self.steps = 0
        self.computed_tokens = 0
        self._next_token = next_token or hashed_token(50)
        self._memory: dict[tuple[int, int], tuple[int, int]] = {}
        self._last_step: dict[int, int] = {}
        self._tables: dict[int, list[int]] = {}

    def start(self, plan: StepPlan) -> FinishedStep:
        return FinishedStep(self.run(plan))

    def run(self, plan: StepPlan) -> StepResult:
        self.steps += 1
        self.computed_tokens += plan.num_tokens
        for one in plan.slices:
            kept = one.block_table[: one.num_kept_blocks]
            assert kept == self._tables.get(one.sequence_id, [])[: one.num_kept_blocks]
            self._tables[one.sequence_id] = list(one.block_table)
        # Before any write: no slice may depend on what another slice of this step computes.
        histories = [self._read(one) for one in plan.slices]
        written: set[tuple[int, int]] = set()
        sampled: list[int | None] = []
        for one, history in zip(plan.slices, histories, strict=True):
            token_ids = one.token_ids or [self._last_step[one.sequence_id]]
            for position, token in enumerate(token_ids, start=one.start):
                slot = self._slot(one, position)
                assert slot not in written, f"two sequences write to {slot}"
                written.add(slot)
                history.append(token)
                self._memory[slot] = (token, hash(tuple(history)))
            sampled.append(
                None if one.sampling is None else self._next_token(history, one.sampling)
            )
        for one, history in zip(plan.slices, histories, strict=True):
            assert self._read(one)[: one.start] == history[: one.start], "overwritten while read"
        self._last_step = {
            one.sequence_id: token
            for one, token in zip(plan.slices, sampled, strict=True)
            if token is not None
        }
        return StepResult(sampled=sampled)

    def _read(self, one: SequenceSlice) -> list[int]:
        history: list[int] = []
        for position in range(one.start):
            slot = self._slot(one, position)
            assert slot in self._memory, f"{slot} is read before it was written"
            token, prefix = self._memory[slot]
            history.append(token)
            assert prefix == hash(tuple(history)), f"{slot} belongs to another prefix"
        return history

    def _slot(self, one: SequenceSlice, position: int) -> tuple[int, int]:
        return one.block_table[position // self.block_size], position % self.block_size
