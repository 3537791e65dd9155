"""A sequence: one prompt and what was generated after it, and where its KV lives.

token_ids   │ prompt ……………………………… │ generated ………… │ newest │
            0              num_prompt_tokens          num_tokens
KV          │ cached hit │ computed here ……… │ in flight   │ not yet      │
            0       cached_tokens        num_computed   num_planned
blocks      │ b0 │ b1 │ b2 │ …                │ last, maybe partly filled │
block_keys  │ k0 │ k1 │ …: full blocks only, made as needed, kept over a preemption │
"""

from dataclasses import dataclass, field
from enum import Enum, auto

from replica.core.block_hash import BlockKey, block_keys
from replica.core.plan import SamplingParams


class Finish(Enum):
    """Why a sequence ended."""

    STOP = "stop"
    """It produced an end-of-sequence or stop token, which is its last token."""
    LENGTH = "length"
    """It has as many tokens as it asked for, or as the context holds."""


class State(Enum):
    WAITING = auto()
    RUNNING = auto()
    ENDED = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceRequest:
    """What to generate.

    Attributes:
        sequence_id: Unique within the engine's life.
        prompt_token_ids: At least one.
        max_tokens: How many tokens to generate at most, at least 1.
        stop_token_ids: Tokens that end it: the model's end-of-sequence tokens, unless the client
            ignores them, and those the client named.
        cache_salt: Blocks are shared only between sequences with the same salt.
    """

    sequence_id: int
    prompt_token_ids: list[int]
    sampling: SamplingParams
    max_tokens: int
    stop_token_ids: frozenset[int] = frozenset()
    cache_salt: str | None = None


@dataclass(slots=True, eq=False)
class Sequence:
    """One request's state in the scheduler.

    Attributes:
        arrival: Rank by arrival, the same over preemptions: lower is older and goes first.
        num_computed: Tokens whose KV is in `blocks`: positions [0, num_computed).
        num_planned: As num_computed once the steps in flight are done; never less.
        num_unknown: Tokens that the steps in flight add to `token_ids`.
        blocks: Block table. While running it covers every token that is planned.
        num_kept_blocks: Blocks [0, num_kept_blocks) are as its last slice had them.
        num_stored: Blocks [0, num_stored) of the table are findable by others.
        num_had_blocks: Blocks [0, num_had_blocks) were findable before it was preempted.
        findable: False once a block of it could not be stored: then none below it may be.
        cached_tokens: Prompt tokens found in the cache when it was first admitted.
        lost_tokens: Tokens computed before a preemption and not computed again yet.
        pending_waits: How often it waited a step for a block that another was computing.
        arrived_s, started_s: When it was submitted, and first admitted.
    """

    request: SequenceRequest
    arrival: int
    arrived_s: float
    token_ids: list[int] = field(default_factory=list)
    state: State = State.WAITING
    num_computed: int = 0
    num_planned: int = 0
    num_unknown: int = 0
    blocks: list[int] = field(default_factory=list)
    block_keys: list[BlockKey] = field(default_factory=list)
    num_kept_blocks: int = 0
    num_stored: int = 0
    num_had_blocks: int = 0
    findable: bool = True
    cached_tokens: int = 0
    lost_tokens: int = 0
    pending_waits: int = 0
    started_s: float | None = None

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def num_unplanned(self) -> int:
        return len(self.token_ids) + self.num_unknown - self.num_planned

    def key(self, index: int, block_size: int) -> BlockKey:
        """The key of full block `index`."""
        return self.keys(index + 1, block_size)[index]

    def keys(self, count: int, block_size: int) -> list[BlockKey]:
        """The keys of at least the first `count` full blocks, not to be changed; each block is
        hashed once in the sequence's life."""
        known = len(self.block_keys)
        if known < count:
            assert count * block_size <= self.num_tokens, "only full blocks have keys"
            salt = self.request.cache_salt
            self.block_keys += block_keys(
                self.block_keys[-1].hash if known else None,
                self.token_ids[known * block_size : count * block_size],
                block_size,
                (salt,) if salt is not None and not known else None,
            )
        return self.block_keys

    def put_block(self, index: int, block: int) -> None:
        """`block`, of the same content, takes the place of the one in the table."""
        if self.blocks[index] != block:
            self.blocks[index] = block
            self.num_kept_blocks = min(self.num_kept_blocks, index)

    def forget_blocks(self) -> None:
        """Nothing of it is in the cache any more."""
        self.blocks = []
        self.num_had_blocks = max(self.num_had_blocks, self.num_stored)
        self.num_computed = self.num_planned = self.num_stored = self.num_kept_blocks = 0

    def check(self, block_size: int) -> None:
        assert len(self.block_keys) <= self.num_tokens // block_size
        assert self.num_stored <= self.num_computed // block_size
        if self.state is State.RUNNING:
            assert 0 <= self.num_computed < self.num_tokens
            assert self.num_computed <= self.num_planned < self.num_tokens + self.num_unknown
            assert len(self.blocks) * block_size >= self.num_planned
            assert len(set(self.blocks)) == len(self.blocks)
            assert not self.findable or self.num_stored == self.num_computed // block_size
        else:
            assert not self.blocks
            assert self.num_kept_blocks == 0
            assert self.num_computed == self.num_planned == self.num_stored == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceOutput:
    """What one step gave one sequence.

    Attributes:
        token_id: The new token.
        finish: Set on its last output.
        cached_tokens: Prompt tokens that came from the cache.
        queue_time_s: From submission to first admission; set on its first output.
    """

    sequence_id: int
    token_id: int
    finish: Finish | None
    cached_tokens: int
    queue_time_s: float | None = None
