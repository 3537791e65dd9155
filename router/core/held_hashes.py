"""The hashes a replica said it holds, by medium: to drop those that a snapshot no longer names.

Only for replicas whose snapshots are lists of hashes (SGLang): about 80 bytes a block.
"""

from collections.abc import Iterable, Iterator, Set

from protocol.kv_events import AllBlocksCleared, BlockHash, BlockRemoved, BlockStored, KvEvent


class HeldHashes:
    """Fed with the events that the index is fed with."""

    def __init__(self) -> None:
        self._by_medium: dict[str | None, set[BlockHash]] = {}

    def apply(self, events: Iterable[KvEvent]) -> None:
        for event in events:
            if isinstance(event, BlockStored):
                self._by_medium.setdefault(event.medium, set()).update(event.block_hashes)
            elif isinstance(event, BlockRemoved):
                held = self._by_medium.get(event.medium)
                if held is not None:
                    held.difference_update(event.block_hashes)
            elif isinstance(event, AllBlocksCleared):
                self._by_medium.clear()

    def apply_after_hole(self, events: Iterable[KvEvent]) -> list[KvEvent]:
        """The same of events before which others are missing; what to feed the index with.

        What is stored though it is held was removed in the hole: else it would count twice.
        """
        mended: list[KvEvent] = []
        for event in events:
            if isinstance(event, BlockStored):
                held = self._by_medium.get(event.medium, set())
                twice = [hash for hash in event.block_hashes if hash in held]
                if twice:
                    mended.append(BlockRemoved(block_hashes=twice, medium=event.medium))
            mended.append(event)
            self.apply((event,))
        return mended

    def clear(self) -> None:
        self._by_medium.clear()

    def retain(self, hashes: Set[BlockHash]) -> Iterator[BlockRemoved]:
        """Forgets all but `hashes`; yields the events that make the index do so too."""
        for medium, held in self._by_medium.items():
            gone = held - hashes
            if gone:
                held -= gone
                yield BlockRemoved(block_hashes=list(gone), medium=medium)

    def unknown(self, hashes: Set[BlockHash]) -> int:
        """How many of `hashes` no event has told of."""
        return len(hashes - set().union(*self._by_medium.values()))
