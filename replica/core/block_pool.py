"""The KV cache's blocks: who holds each, which are cached under which name, what changed.

A block is in exactly one of three places:

    empty      nobody holds it, its content is worthless          references 0, no key
    held       by one sequence or more                            references ≥ 1
    evictable  nobody holds it, its content can still be found    references 0, key

      allocate            release (no key)            store: a full block gets its key
    empty ──▶ held ───────────────────▶ empty         held, no key ──▶ held, key
               ▲ │ release (key)
       acquire │ ▼
            evictable ──▶ empty, and at once held by whom `allocate` serves

Rules that everything else rests on:
1. Only the one sequence that allocated a block writes to it, and only while it has no key; a block
   with a key is never written again. So a block held by several is never written.
2. A name is cached once. When a sequence fills a block whose name another block has already, it
   gets that block and its own becomes empty (`store`): equal prefixes end up in equal blocks.
3. A sequence that holds a cached block holds all blocks above it (same sequence, or rule 2), and
   lets go of its last block first. So a cached block's parent is cached too: no orphans, and the
   order in which names were stored has parents first.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence

from protocol.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent
from replica.core.block_hash import BlockKey, tokens_of
from replica.core.eviction import Eviction, LeastRecentlyUsed

MEDIUM = "GPU"
"""vLLM's word for the tier attention reads from, on any device."""


class BlockPool:
    """All blocks of one KV cache, preallocated; every operation is O(1) per block."""

    def __init__(
        self, total_blocks: int, block_size: int, eviction: Eviction | None = None
    ) -> None:
        """
        Args:
            total_blocks: How many blocks there are: indices [0, total_blocks).
            block_size: Tokens a block.
            eviction: Starts empty; None means LeastRecentlyUsed.
        """
        assert total_blocks > 0
        assert block_size > 0
        self.total_blocks = total_blocks
        self.block_size = block_size
        self._references = [0] * total_blocks
        self._keys: list[BlockKey | None] = [None] * total_blocks
        self._empty = list(range(total_blocks - 1, -1, -1))
        self._eviction = LeastRecentlyUsed(total_blocks) if eviction is None else eviction
        self._by_hash: dict[int, int] = {}
        self._events: list[KvEvent] = []

    @property
    def free_blocks(self) -> int:
        """Blocks that `allocate` can give out: empty and evictable ones."""
        return len(self._empty) + len(self._eviction)

    @property
    def cached_blocks(self) -> int:
        return len(self._by_hash)

    @property
    def held_blocks(self) -> int:
        return self.total_blocks - self.free_blocks

    def references(self, block: int) -> int:
        return self._references[block]

    def find(self, key: BlockKey) -> int | None:
        """The block that holds exactly what `key` says, if any; a hash collision is a miss."""
        block = self._by_hash.get(key.hash)
        return block if block is not None and self._keys[block] == key else None

    def count_evictable(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` nobody holds: acquiring them makes that many fewer free."""
        return sum(self._references[block] == 0 for block in blocks)

    def acquire(self, blocks: Iterable[int], num_had: int = 0) -> None:
        """One more sequence holds each of `blocks`, which are cached, parents first.

        Args:
            num_had: The sequence had the first so many before: coming back to them is no reuse.
        """
        for index, block in enumerate(blocks):
            if index >= num_had:
                self._eviction.reused(block)
            if self._references[block] == 0:
                self._eviction.remove(block)
            self._references[block] += 1

    def allocate(self, count: int) -> list[int]:
        """`count` blocks to write to, evicting as needed; there must be that many free."""
        assert count <= self.free_blocks, f"{count} blocks asked, {self.free_blocks} free"
        blocks = []
        for _ in range(count):
            block = self._empty.pop() if self._empty else self._evict()
            self._references[block] = 1
            blocks.append(block)
        return blocks

    def release(self, blocks: Sequence[int]) -> None:
        """A sequence lets go of its block table `blocks`, last block first (rule 3)."""
        for block in reversed(blocks):
            assert self._references[block] > 0, f"block {block} released once too often"
            self._references[block] -= 1
            if self._references[block] == 0:
                if self._keys[block] is None:
                    self._empty.append(block)
                else:
                    self._eviction.add(block)

    def store(self, block: int, key: BlockKey, again: bool = False) -> int | None:
        """`block` has been filled with what `key` says: it can be found from now on.

        Args:
            again: Its sequence had this content before: computing it again is no reuse.

        Returns:
            The block to use in its place from now on: `block`, or the one that holds the same
            already (then `block` is empty again). None when the name is taken by other content (a
            hash collision): `block` stays held but cannot be found, nor may blocks below it.
        """
        assert self._references[block] == 1, "only its writer fills a block"
        assert self._keys[block] is None, "a block is filled once"
        assert key.parent_hash is None or key.parent_hash in self._by_hash, "its parent is cached"
        existing = self._by_hash.get(key.hash)
        if existing is None:
            self._by_hash[key.hash] = block
            self._keys[block] = key
            parent = None if key.parent_hash is None else self._by_hash[key.parent_hash]
            self._eviction.stored(block, key.hash, parent, again)
            self._record_stored(key)
            return block
        if self._keys[existing] != key:
            return None
        self.acquire([existing], int(again))
        self._references[block] = 0
        self._empty.append(block)
        return existing

    def clear(self) -> None:
        """Forgets every cached content; blocks stay held by whom they are held."""
        for block in list(self._eviction):
            self._eviction.remove(block)
            self._empty.append(block)
        self._keys = [None] * self.total_blocks
        self._by_hash.clear()
        self._events.append(AllBlocksCleared())

    def take_events(self) -> list[KvEvent]:
        """What happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def snapshot(self) -> list[BlockStored]:
        """Events that, applied to nothing, give everything cached now, parents first.

        As few as can be: blocks were stored as sequences took turns, but long chains are cheaper to
        read. A block's first child continues its chain, the others begin one of their own, in the
        order in which they were stored: so after the chain that they hang from.
        """
        heads: list[BlockKey] = []
        continued: dict[int, BlockKey] = {}
        for block in self._by_hash.values():
            key = self._keys[block]
            assert key is not None
            if key.parent_hash is None or key.parent_hash in continued:
                heads.append(key)
            else:
                continued[key.parent_hash] = key
        return [_chain_stored(head, continued, self.block_size) for head in heads]

    def _evict(self) -> int:
        block = self._eviction.pop()
        key = self._keys[block]
        assert key is not None
        self._keys[block] = None
        del self._by_hash[key.hash]
        last = self._events[-1] if self._events else None
        if isinstance(last, BlockRemoved):
            last.block_hashes.append(key.hash)
        else:
            self._events.append(BlockRemoved(block_hashes=[key.hash], medium=MEDIUM))
        return block

    def _record_stored(self, key: BlockKey) -> None:
        _append_stored(self._events, key, self.block_size)

    def check(self) -> None:
        """Every block is in one place, and every name leads to its block and has its parent."""
        self._eviction.check()
        evictable = set(self._eviction)
        empty = set(self._empty)
        assert len(empty) == len(self._empty)
        assert not empty & evictable
        for block in range(self.total_blocks):
            free = block in empty or block in evictable
            assert free == (self._references[block] == 0), f"block {block}: held and free"
            assert self._references[block] >= 0
            assert block not in empty or self._keys[block] is None
            assert block not in evictable or self._keys[block] is not None
        keyed = {key.hash: block for block, key in enumerate(self._keys) if key is not None}
        assert keyed == self._by_hash
        seen: set[int] = set()
        for name, block in self._by_hash.items():
            key = self._keys[block]
            assert key is not None
            assert key.parent_hash is None or key.parent_hash in seen, "a child before its parent"
            if key.parent_hash is not None:
                parent = self._by_hash[key.parent_hash]
                assert self._references[parent] >= self._references[block]
            seen.add(name)


def _append_stored(events: list[KvEvent], key: BlockKey, block_size: int) -> None:
    """Adds `key` to the last event if it continues that chain, else as a new event."""
    last = events[-1] if events else None
    extra = None if key.extra_keys is None else list(key.extra_keys)
    if isinstance(last, BlockStored) and last.block_hashes[-1] == key.parent_hash:
        last.block_hashes.append(key.hash)
        last.token_ids.extend(tokens_of(key))
        if last.extra_keys is not None:
            last.extra_keys.append(extra)
        return
    events.append(
        BlockStored(
            block_hashes=[key.hash],
            parent_block_hash=key.parent_hash,
            token_ids=tokens_of(key),
            block_size=block_size,
            medium=MEDIUM,
            extra_keys=None if extra is None else [extra],
        )
    )


def _chain_stored(
    head: BlockKey, continued: Mapping[int, BlockKey], block_size: int
) -> BlockStored:
    """`head` and what continues it, as one event."""
    keys = [head]
    while (below := continued.get(keys[-1].hash)) is not None:
        keys.append(below)
    tokens = array("I", b"".join(key.token_bytes for key in keys))
    extra = None if head.extra_keys is None else [list(head.extra_keys)]
    return BlockStored(
        block_hashes=[key.hash for key in keys],
        parent_block_hash=head.parent_hash,
        token_ids=tokens.tolist(),
        block_size=block_size,
        medium=MEDIUM,
        extra_keys=extra and [*extra, *[None] * (len(keys) - 1)],
    )
