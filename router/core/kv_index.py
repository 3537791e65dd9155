"""KV events into the prefix tree: token ids become bytes, extra keys become the namespace.

Only what a prompt's text can be matched against is indexed: full-attention blocks on the device.
The rest is counted, so that what the router does not know is a number.
"""

from collections import Counter
from collections.abc import Iterable

from prompt.vocabulary import Vocabulary
from protocol.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent
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
        # Groups of layers that are not full attention: their blocks bear the same hashes, and
        # removals only say the group.
        self._other_groups: dict[ReplicaId, set[int]] = {}

    def apply(self, replica: ReplicaId, events: Iterable[KvEvent]) -> None:
        """Applies the events of one batch, in order."""
        for event in events:
            if isinstance(event, BlockStored):
                self._store(replica, event)
            elif isinstance(event, BlockRemoved):
                self._remove(replica, event)
            elif isinstance(event, AllBlocksCleared):
                self._tree.clear(replica)
            else:
                self.skipped["unknown_type"] += 1

    def clear(self, replica: ReplicaId) -> None:
        """Forgets what was believed of the replica."""
        self._tree.clear(replica)
        self._other_groups.pop(replica, None)

    def _remove(self, replica: ReplicaId, event: BlockRemoved) -> None:
        if event.medium not in _DEVICE_MEDIUMS:
            return
        if event.group_idx is not None and event.group_idx in self._other_groups.get(replica, ()):
            return
        unknown = len(event.block_hashes) - self._tree.remove(replica, event.block_hashes)
        if unknown:
            self.skipped["removed_unknown"] += unknown

    def _store(self, replica: ReplicaId, event: BlockStored) -> None:
        if event.medium not in _DEVICE_MEDIUMS:
            self.skipped["other_medium"] += len(event.block_hashes)
            return
        if event.kv_cache_spec_kind not in _FULL_ATTENTION:
            self.skipped["not_full_attention"] += len(event.block_hashes)
            if event.group_idx is not None:
                self._other_groups.setdefault(replica, set()).add(event.group_idx)
            return
        namespace = _namespace(event)
        count = _count_of_plain_text(event)
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
        return tuple(map(str, event.extra_keys[0]))
    lora = event.lora_name
    if lora is None and event.lora_id is not None:
        lora = f"lora_id={event.lora_id}"  # engines too old to name it
    return tuple(name for name in (lora, event.cache_salt) if name)


def _count_of_plain_text(event: BlockStored) -> int:
    """How many leading blocks are told apart by text and namespace alone.

    A root block's extra keys are its namespace, a later block's repeat the LoRA name; anything
    else (an image's hash) means that equal text does not make it an equal block.
    """
    for index, keys in enumerate(event.extra_keys or ()):
        if not keys:
            continue
        if index == 0 and event.parent_block_hash is None:
            plain = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        else:
            plain = keys == [event.lora_name]
        if not plain:
            return index
    return len(event.block_hashes)
