"""What the replicas' caches go through: prefills, decoded answers, evictions; as wire events.

It also knows the truth: which blocks each replica holds at the end.
"""

from collections.abc import Iterator, Sequence

from loadtests.index_bench.conversations import (
    ANSWER_TOKENS,
    BLOCK_TOKENS,
    Author,
    Conversation,
    Family,
    chained_hashes,
)
from loadtests.index_bench.words import Tokens
from protocol.kv_events import BlockRemoved, BlockStored, EventBatch, KvEvent, encode_batch

# One engine step: a prefill budget of 8,192 tokens; answers that fill a block in one step of 64
# running sequences; blocks evicted for a step's new ones.
BLOCKS_PER_PREFILL = 512
ANSWERS_PER_STEP = 4
REMOVALS_PER_STEP = 32
EVICTED_SHARE = 0.15
EVICTED_BLOCKS_MAX = 100

Frame = tuple[int, bytes]


class FleetCaches:
    """The caches of `replicas` engines, and their event streams."""

    def __init__(self, replicas: int) -> None:
        # Block to how many held blocks follow it.
        self._held: list[dict[int, int]] = [{} for _ in range(replicas)]
        self._ts = 1_760_000_000.0

    @property
    def resident_blocks(self) -> int:
        """(Replica, block) pairs."""
        return sum(map(len, self._held))

    @property
    def distinct_blocks(self) -> int:
        return len(set().union(*self._held))

    def prefill(self, replica: int, tokens: Tokens, hashes: Sequence[int]) -> Iterator[Frame]:
        """The whole blocks of a prompt that the replica has not yet, a step at a time."""
        held = self._held[replica]
        at = next((n for n, one in enumerate(hashes) if one not in held), len(hashes))
        for start in range(at, len(hashes), BLOCKS_PER_PREFILL):
            end = min(start + BLOCKS_PER_PREFILL, len(hashes))
            yield replica, self._batch([self._store(replica, tokens, hashes, start, end)])

    def share_system_prompts(self, families: Sequence[Family]) -> Iterator[Frame]:
        for family in families:
            if family.common:
                hashes = chained_hashes(family.system)
                for replica in range(len(self._held)):
                    yield from self.prefill(replica, family.system, hashes)

    def decode(self, conversations: Sequence[Conversation]) -> Iterator[Frame]:
        """The answers, block by block, a few sequences a step."""
        running: list[list[tuple[Conversation, int]]] = [[] for _ in self._held]
        for one in conversations:
            for home in one.homes:
                running[home].append((one, one.prompt_tokens // BLOCK_TOKENS))
        for replica, sequences in enumerate(running):
            for first in range(0, len(sequences), ANSWERS_PER_STEP):
                group = sequences[first : first + ANSWERS_PER_STEP]
                for step in range(ANSWER_TOKENS // BLOCK_TOKENS + 1):
                    events: list[KvEvent] = [
                        self._store(replica, one.tokens, one.hashes, at + step, at + step + 1)
                        for one, at in group
                        if at + step < len(one.hashes)
                        and one.hashes[at + step] not in self._held[replica]
                    ]
                    if events:
                        yield replica, self._batch(events)

    def evict(self, author: Author, conversations: Sequence[Conversation]) -> Iterator[Frame]:
        """Some conversations' tails, last block first, one block an event."""
        events: list[list[KvEvent]] = [[] for _ in self._held]
        for one in conversations:
            for home in one.homes:
                if author.pick(EVICTED_SHARE):
                    events[home] += self._evict_tail(home, one)
        for replica, some in enumerate(events):
            for first in range(0, len(some), REMOVALS_PER_STEP):
                yield replica, self._batch(some[first : first + REMOVALS_PER_STEP])

    def holders(self, hashes: Sequence[int]) -> dict[int, int]:
        """Tokens that each replica holds of a prompt with these blocks: the right answer."""
        found: dict[int, int] = {}
        for replica, held in enumerate(self._held):
            depth = next((n for n, one in enumerate(hashes) if one not in held), len(hashes))
            if depth:
                found[replica] = depth * BLOCK_TOKENS
        return found

    def _store(
        self, replica: int, tokens: Tokens, hashes: Sequence[int], start: int, end: int
    ) -> BlockStored:
        held = self._held[replica]
        parent = hashes[start - 1] if start else None
        for one in hashes[start:end]:
            if parent is not None:
                held[parent] += 1
            held[one], parent = 0, one
        return BlockStored(
            block_hashes=list(hashes[start:end]),
            parent_block_hash=hashes[start - 1] if start else None,
            token_ids=tokens[start * BLOCK_TOKENS : end * BLOCK_TOKENS].tolist(),
            block_size=BLOCK_TOKENS,
            medium="GPU",
            group_idx=0,
            kv_cache_spec_kind="full_attention",
        )

    def _evict_tail(self, replica: int, one: Conversation) -> Iterator[KvEvent]:
        held = self._held[replica]
        most = min(EVICTED_BLOCKS_MAX, len(one.hashes) // 3)
        for at in range(len(one.hashes) - 1, len(one.hashes) - 1 - most, -1):
            block = one.hashes[at]
            if held.get(block) != 0:  # gone already, or another conversation goes on below it
                return
            del held[block]
            if at:
                held[one.hashes[at - 1]] -= 1
            yield BlockRemoved(block_hashes=[block], medium="GPU", group_idx=0)

    def _batch(self, events: list[KvEvent]) -> bytes:
        self._ts += 0.01
        return encode_batch(EventBatch(ts=self._ts, events=events, data_parallel_rank=0))
