"""KV events into the prefix tree: token ids become bytes, extra keys become the namespace.

Only what a prompt's text can be matched against is indexed: full-attention blocks, on the device
or on a slower tier near it. The rest is counted, so that what the router does not know is a number.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

from prompt.vocabulary import Vocabulary
from protocol.kv_events import AllBlocksCleared, BlockHash, BlockRemoved, BlockStored, KvEvent
from router.core.chains import Tier
from router.core.ids import Namespace, ReplicaId, namespace_of
from router.core.prefix_tree import MisplacedBlock, PrefixTree, UnknownParent

# Where engines say a block lies: vLLM's GPU, CPU, STORAGE; SGLang's GPU, CPU_PINNED, DISK,
# EXTERNAL. Engines too old to say only speak of the device.
_TIERS = {
    None: Tier.DEVICE,
    "GPU": Tier.DEVICE,
    "CPU": Tier.HOST,
    "CPU_PINNED": Tier.HOST,
    "STORAGE": Tier.DISK,
    "DISK": Tier.DISK,
    "EXTERNAL": Tier.DISK,
}
_FULL_ATTENTION = frozenset({None, "full_attention"})
_REMOTE = "REMOTE"
_NAME_BITS = 64


class KvIndex:
    """One model's prefix tree, fed with its replicas' events."""

    def __init__(self, tree: PrefixTree, vocabulary: Vocabulary) -> None:
        self._tree = tree
        self._vocabulary = vocabulary
        # Why blocks and events were not indexed, by reason: a bounded set.
        self.skipped: Counter[str] = Counter()
        # Groups of layers that are not full attention: their blocks bear the same hashes, and
        # removals only say the group.
        self._other_groups: dict[ReplicaId, set[int]] = {}

    def apply(self, replica: ReplicaId, events: Iterable[KvEvent]) -> None:
        """Applies the events of one batch, in order."""
        removed: list[BlockRemoved] = []
        for event in events:
            if isinstance(event, BlockRemoved):
                removed.append(event)
                continue
            if removed:
                self._remove(replica, removed)
                removed = []
            if isinstance(event, BlockStored):
                self._store(replica, event)
            elif isinstance(event, AllBlocksCleared):
                self._tree.clear(replica)
            else:
                self.skipped["unknown_type"] += 1
        if removed:
            self._remove(replica, removed)

    def clear(self, replica: ReplicaId, expected_blocks: int = 0) -> None:
        """Forgets what was believed of the replica.

        Args:
            expected_blocks: How many it will be told to hold next, about.
        """
        self._tree.clear(replica)
        if expected_blocks:
            self._tree.reserve(replica, expected_blocks)
        self._other_groups.pop(replica, None)

    def _remove(self, replica: ReplicaId, events: Iterable[BlockRemoved]) -> None:
        """Evictions come one block an event; the tree takes them all at once, tier by tier."""
        other_groups = self._other_groups.get(replica, ())
        hashes: dict[Tier, list[BlockHash]] = {}
        for event in events:
            tier = _TIERS.get(event.medium)
            if tier is None:
                self.skipped["unknown_medium"] += len(event.block_hashes)
            elif event.locality == _REMOTE:
                self.skipped["remote"] += len(event.block_hashes)
            elif event.group_idx is None or event.group_idx not in other_groups:
                hashes.setdefault(tier, []).extend(event.block_hashes)
        for tier, removed in hashes.items():
            unknown = len(removed) - self._tree.remove(replica, _names(removed), tier)
            if unknown:
                self.skipped["removed_unknown"] += unknown

    def _store(self, replica: ReplicaId, event: BlockStored) -> None:
        blocks = len(event.block_hashes)
        tier = _TIERS.get(event.medium)
        if tier is None:
            self.skipped["unknown_medium"] += blocks
            return
        if event.locality == _REMOTE:
            self.skipped["remote"] += blocks
            return
        if not is_full_attention(event):
            self.skipped["not_full_attention"] += blocks
            if event.group_idx is not None:
                self._other_groups.setdefault(replica, set()).add(event.group_idx)
            return
        names, tokens = _names(event.block_hashes), event.token_ids
        if not tokens:  # known by name, now on one tier more
            unknown = blocks - self._tree.hold(replica, names, tier)
            if unknown:
                self.skipped["held_unknown"] += unknown
            return
        count = blocks
        if event.extra_keys:
            count = _count_of_plain_text(event)
            if count < blocks:
                self.skipped["not_text"] += blocks - count
            if not count:
                return
        parent, size = event.parent_block_hash, event.block_size
        try:
            self._tree.store(
                replica,
                _namespace(event) if parent is None else (),
                names[:count],
                None if parent is None else _name(parent),
                self._vocabulary.detokenise_blocks(tokens, size)[:count],
                size,
                tier,
            )
        except UnknownParent:
            # Its parent was not indexed (see above), or was evicted before the snapshot.
            self.skipped["unknown_parent"] += count
        except MisplacedBlock:
            self.skipped["misplaced"] += count


def is_full_attention(event: BlockStored) -> bool:
    """Whether these are the blocks that prompts are matched against."""
    return event.kv_cache_spec_kind in _FULL_ATTENTION


def _names(hashes: Sequence[BlockHash]) -> Sequence[int]:
    """The hashes as unsigned 64-bit numbers."""
    try:
        return array("Q", hashes)  # type: ignore[arg-type]  # bytes raise TypeError
    except (TypeError, OverflowError):
        return [_name(hash) for hash in hashes]


def _name(hash: BlockHash) -> int:
    """A hash in 64 bits: of bytes the last eight, as vLLM itself shortens them; of a negative
    number its two's complement."""
    if isinstance(hash, bytes):
        return int.from_bytes(hash[-_NAME_BITS // 8 :], "big")
    return hash & ((1 << _NAME_BITS) - 1)


def _namespace(event: BlockStored) -> Namespace:
    """What beside the text tells a root block from others: LoRA name and cache salt.

    vLLM lists a first block's extra keys as the LoRA name if any, then the salt if any; engines
    without extra keys have fields of their own.
    """
    adapter, salt = event.lora_name, event.cache_salt
    if adapter is None and event.lora_id is not None:
        adapter = f"lora_id={event.lora_id}"  # engines too old to name it
    if event.extra_keys and event.extra_keys[0]:
        salt = next((str(key) for key in event.extra_keys[0] if key != adapter), salt)
    return namespace_of(adapter, salt)


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
