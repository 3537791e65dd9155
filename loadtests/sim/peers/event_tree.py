"""What replicas hold by their own word: KV events in, the longest match of a prompt out.

Engines' names of blocks are opaque, so blocks are named anew from their tokens (`block_names`), as
SMG, Dynamo and llm-d do; a replica's own names serve to find what it removes, and parents. Only
what lies in GPU memory counts: events about slower media, or without tokens, are passed over.
Blocks below a parent never heard of are passed over too, and counted (Dynamo's way).

Source: ai-dynamo/dynamo, lib/kv-router/src/indexer; lightseekorg/smg, crates/kv_index.
"""

from collections.abc import Iterable, Sequence

from loadtests.sim.peers.block_names import ROOT, TOKEN_BYTES, below, full_blocks, token_bytes
from loadtests.sim.peers.block_table import replicas_in
from loadtests.sim.router import ReplicaFacts
from protocol.kv_events import AllBlocksCleared, BlockHash, BlockRemoved, BlockStored, KvEvent

_ON_GPU = (None, "GPU")


class EventTree:
    """Which replica holds which block.

    Attributes:
        block_tokens: Tokens a block.
        orphans: Blocks passed over because their parent was not known.

    Raises:
        ValueError: Replicas have blocks of different sizes; these peers take one size a model.
    """

    def __init__(self, replicas: Sequence[ReplicaFacts]) -> None:
        sizes = {one.block_size for one in replicas}
        if len(sizes) != 1:
            raise ValueError(f"one block size for all replicas, not {sorted(sizes)}")
        self.block_tokens = sizes.pop()
        self.orphans = 0
        self._all = (1 << len(replicas)) - 1
        self._holders: dict[int, int] = {}
        # For each replica: its own name of a block, and ours.
        self._names: list[dict[BlockHash, int]] = [{} for _ in replicas]
        # Of blocks that begin a prompt: who stored it first.
        self._first_holder: dict[int, int] = {}

    def size(self, replica: int) -> int:
        """Blocks it holds."""
        return len(self._names[replica])

    def match(self, prompt: Sequence[int]) -> list[int]:
        """By replica, how many full blocks of `prompt` it holds from the first on."""
        return self.match_names(full_blocks(prompt, self.block_tokens))

    def match_names(self, names: Iterable[int]) -> list[int]:
        """The same for names made by `full_blocks` with this tree's block size."""
        counts = [0] * len(self._names)
        holders, active, matched = self._holders, self._all, 0
        for name in names:
            left = active & holders.get(name, 0)
            if left != active:
                for replica in replicas_in(active & ~left):
                    counts[replica] = matched
                active = left
                if not active:
                    break
            matched += 1
        for replica in replicas_in(active):
            counts[replica] = matched
        return counts

    def first_holder(self, prompt: Sequence[int]) -> int | None:
        """Who of those that hold the prompt's first block stored it first; None: nobody holds it.

        When that one has removed it, the lowest of the others counts.
        """
        for name in full_blocks(prompt[: self.block_tokens], self.block_tokens):
            return self._first_holder.get(name)
        return None

    def apply(self, replica: int, events: Iterable[KvEvent]) -> None:
        for event in events:
            if isinstance(event, BlockStored):
                self._store(replica, event)
            elif isinstance(event, BlockRemoved):
                if event.medium in _ON_GPU:
                    self._remove(replica, event.block_hashes)
            elif isinstance(event, AllBlocksCleared):
                self.clear(replica)

    def clear(self, replica: int) -> None:
        """It holds nothing any more."""
        self._remove(replica, list(self._names[replica]))

    def check(self) -> None:
        """Asserts that what is held is what replicas have named."""
        for name, mask in self._holders.items():
            assert mask, "a block nobody holds is forgotten"
            for replica in replicas_in(mask):
                assert name in self._names[replica].values()
        for replica, names in enumerate(self._names):
            assert all(self._holders[name] >> replica & 1 for name in names.values())
        for name, first in self._first_holder.items():
            assert self._holders[name] >> first & 1

    def _store(self, replica: int, event: BlockStored) -> None:
        if event.medium not in _ON_GPU or not event.token_ids:
            return
        assert event.block_size == self.block_tokens, "a replica keeps its block size"
        names, bit = self._names[replica], 1 << replica
        parent = event.parent_block_hash
        above = ROOT if parent is None else names.get(parent)
        if above is None:
            self.orphans += len(event.block_hashes)
            return
        data = token_bytes(event.token_ids)
        assert len(data) == len(event.block_hashes) * self.block_tokens * TOKEN_BYTES
        first = parent is None
        for block_hash, name in zip(
            event.block_hashes, below(above, data, self.block_tokens), strict=True
        ):
            names[block_hash] = name
            self._holders[name] = self._holders.get(name, 0) | bit
            if first:
                self._first_holder.setdefault(name, replica)
                first = False

    def _remove(self, replica: int, block_hashes: Iterable[BlockHash]) -> None:
        names, bit = self._names[replica], 1 << replica
        for block_hash in block_hashes:
            name = names.pop(block_hash, None)
            if name is None or not self._holders.get(name, 0) & bit:
                continue
            left = self._holders[name] & ~bit
            if left:
                self._holders[name] = left
            else:
                del self._holders[name]
            if self._first_holder.get(name) == replica:
                if left:
                    self._first_holder[name] = replicas_in(left)[0]
                else:
                    del self._first_holder[name]
