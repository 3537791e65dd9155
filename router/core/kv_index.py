"""KV events into the prefix tree: token ids become bytes, extra keys become the namespace.

Only what a prompt's text can be matched against is indexed: full-attention blocks on the device.
The rest is counted, so that what the router does not know is a number.
"""

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any

from prompt.vocabulary import Vocabulary
from protocol.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent, Snapshot
from router.core.marks import Namespace, ReplicaId
from router.core.prefix_tree import MisplacedBlock, PrefixTree, UnknownParent

_DEVICE_MEDIUMS = frozenset({None, "GPU"})
_FULL_ATTENTION = frozenset({None, "full_attention"})


class KvIndex:
    """One model's prefix tree, fed with its replicas' events."""

    def __init__(self, tree: PrefixTree, vocabulary: Vocabulary) -> None:
        self._tree = tree
        self._vocabulary = vocabulary
        # Why events were not indexed, by reason: a bounded set.
        self.skipped: Counter[str] = Counter()

    def apply(self, replica: ReplicaId, events: Iterable[KvEvent]) -> None:
        """Applies the events of one batch, in order."""
        for event in events:
            if isinstance(event, BlockStored):
                self._store(replica, event)
            elif isinstance(event, BlockRemoved):
                if event.medium in _DEVICE_MEDIUMS:
                    unknown = len(event.block_hashes) - self._tree.remove(
                        replica, event.block_hashes
                    )
                    self.skipped["removed_unknown"] += unknown
            elif isinstance(event, AllBlocksCleared):
                self._tree.clear(replica)
            else:
                self.skipped["unknown_type"] += 1

    def replace(self, replica: ReplicaId, snapshot: Snapshot) -> None:
        """Forgets what was believed of the replica and takes the snapshot's word."""
        self._tree.clear(replica)
        self.apply(replica, snapshot.events)

    def clear(self, replica: ReplicaId) -> None:
        self._tree.clear(replica)

    def _store(self, replica: ReplicaId, event: BlockStored) -> None:
        if event.medium not in _DEVICE_MEDIUMS:
            self.skipped["other_medium"] += len(event.block_hashes)
            return
        if event.kv_cache_spec_kind not in _FULL_ATTENTION:
            self.skipped["not_full_attention"] += len(event.block_hashes)
            return
        namespace = _namespace(event)
        count = _count_of_plain_text(event, namespace)
        if count < len(event.block_hashes):
            self.skipped["not_text"] += len(event.block_hashes) - count
        size, detokenise = event.block_size, self._vocabulary.detokenise
        texts = [detokenise(event.token_ids[i * size : (i + 1) * size]) for i in range(count)]
        try:
            self._tree.store(
                replica,
                namespace,
                event.block_hashes[:count],
                event.parent_block_hash,
                texts,
                size,
            )
        except UnknownParent:
            # Its parent was not indexed (see above), or was evicted before the snapshot.
            self.skipped["unknown_parent"] += count
        except MisplacedBlock:
            self.skipped["misplaced"] += count


def _namespace(event: BlockStored) -> Namespace:
    """What beside the text tells a root block from others: cache salt and LoRA name."""
    if event.extra_keys and event.extra_keys[0]:
        return tuple(_hashable(key) for key in event.extra_keys[0])
    return (event.lora_name,) if event.lora_name else ()


def _count_of_plain_text(event: BlockStored, namespace: Namespace) -> int:
    """How many leading blocks are told apart by text and namespace alone.

    A later block's extra keys repeat the LoRA name; anything else (an image's hash) means that
    equal text does not make it an equal block.
    """
    for index, keys in enumerate(event.extra_keys or ()):
        root = index == 0 and event.parent_block_hash is None
        if keys and not root and not (set(map(_hashable, keys)) <= {*namespace, event.lora_name}):
            return index
    return len(event.block_hashes)


def _hashable(key: Any) -> Hashable:
    return tuple(_hashable(part) for part in key) if isinstance(key, list) else key
