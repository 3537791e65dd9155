"""What an event changes in a chain, and in the radix nodes it runs through."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, islice

from router.core.chains import (
    CHAIN_BLOCKS_MAX,
    GHOST,
    HELD_ONCE,
    Chain,
    Confirmed,
    Copies,
    Holder,
    Tier,
    place_of,
)
from router.core.ids import Namespace, ReplicaId
from router.core.radix import Node, Radix


class UnknownParent(LookupError):
    """Blocks were stored below a block that the replica does not hold: an event was missed."""

    def __init__(self, replica: ReplicaId, parent: int) -> None:
        super().__init__(f"replica {replica}: stored below block {parent}, which it has not")
        self.replica = replica
        self.parent = parent


class MisplacedBlock(ValueError):
    """A known hash was stored again at another place: the replica's hashes lie."""

    def __init__(self, replica: ReplicaId, hash: int) -> None:
        super().__init__(f"replica {replica}: block {hash} was stored at two places")
        self.replica = replica
        self.hash = hash


def known_places(
    holder: Holder,
    namespace: Namespace,
    hashes: Sequence[int],
    above: tuple[Chain, int] | None,
    texts: Sequence[bytes],
    block_size: int,
) -> list[tuple[Chain, int]]:
    """Where those of `hashes` are that are known: always the first ones, as parents come first.

    Raises:
        MisplacedBlock: One is not where these hashes and texts put it.
    """
    known: list[tuple[Chain, int]] = []
    end = 0 if above is None else above[0].ends[above[1]]
    for hash, text in zip(hashes, texts, strict=True):
        place = holder.find(hash)
        if place is None:
            break
        chain, index = place
        if index:
            before: tuple[Chain, int] | None = (chain, index - 1)
        elif chain.parent is not None:
            before = (chain.parent, chain.parent_index)
        else:
            before = None
        end += len(text)
        is_there = before == above and chain.ends[index] == end and chain.block_size == block_size
        if not is_there or (before is None and chain.root.namespace != namespace):
            raise MisplacedBlock(holder.replica, hash)
        above = place
        known.append(place)
    return known


def append(
    chain: Chain, hashes: Sequence[int], texts: Sequence[bytes], end: int, node: Node, tier: Tier
) -> None:
    """New blocks at the chain's end, held on `tier`; the holder's table has them already.

    Args:
        end: Where the text before them ends.
        node: Where their own text ends.
    """
    first = len(chain)
    was_open = [chain.rooted[level] == first if first else chain.is_open(level) for level in Tier]
    chain.hashes.extend(array("Q", hashes))
    chain.ends.extend(array("I", islice(accumulate(map(len, texts), initial=end), 1, None)))
    count = len(chain)
    if tier is Tier.DEVICE and all(was_open):
        chain.rooted = (count, count, count)
    else:
        held: Copies = (int(tier == 0), int(tier == 1), int(tier == 2))
        for index in range(first, count):
            chain.set_copies(index, held)
        device, host, disk = (
            count if was_open[level] and tier <= level else chain.rooted[level] for level in Tier
        )
        chain.rooted = (device, host, disk)
    _enter(chain, first, node)
    chain.holder.count(chain, tier, len(hashes))


def append_to_leaf(chain: Chain, hash: int, text: bytes, radix: Radix) -> bool:
    """One block at the end of a chain and of the tree, where all before it is on the device.

    It does nothing that the way through `append` does not: but this is what a conversation that
    goes on looks like, most events are such, and it takes a quarter of the time.

    Returns:
        False: it is not so simple. Nothing was changed.
    """
    ends, node, holder = chain.ends, chain.node, chain.holder
    count, end = len(ends), ends[-1]
    is_leaf = node.end == end and not (node.children or node.predicted or node.parent is None)
    if not is_leaf or chain.rooted[0] != count or not text or count == CHAIN_BLOCKS_MAX:
        return False
    if holder.table.add((hash,), place_of(chain.number, count)) is not None:
        return False
    radix.extend(node, text)
    chain.hashes.append(hash)
    ends.append(node.end)
    count += 1
    chain.rooted = (count, count, count)
    node.last[holder] = Confirmed(chain.start_tokens + count * chain.block_size, node.end)
    holder.count(chain, Tier.DEVICE, 1)
    return True


def _enter(chain: Chain, first: int, node: Node) -> None:
    """Tell the nodes from `node` upwards of the blocks from `first` on."""
    chain.node = node
    ends = chain.ends
    for one in node.up_to(ends[first]):
        index = bisect_right(ends, one.start, first)
        if index < len(ends) and ends[index] <= one.end:
            one.put(chain)


def add_copy(chain: Chain, index: int, tier: Tier) -> None:
    """One more copy of a block."""
    chain.holder.count(chain, tier, 1)
    copies = chain.copies(index)
    chain.set_copies(index, _changed(copies, tier, 1))
    if not any(copies[: tier + 1]):
        _reroot(chain, index)


def take_copies(
    holder: Holder, hashes: Iterable[int], tier: Tier, touched: dict[Node, None]
) -> int:
    """One copy less of each of these blocks, of those that have one; how many have.

    Engines evict a conversation from its end, block by block: such a run is cut off in one go.

    Args:
        touched: The nodes that want pruning are added to it.
    """
    taken = 0
    tail: Chain | None = None
    keep = 0  # blocks of the tail
    for hash in hashes:
        if tail is not None:
            if keep and hash == tail.hashes[keep - 1] and _goes(tail, keep - 1, tier):
                keep -= 1
                taken += 1
                continue
            pop(tail, keep, touched)
            tail = None
        place = holder.find(hash)
        if place is None:
            continue
        chain, index = place
        if index == len(chain) - 1 and _goes(chain, index, tier):
            tail, keep, taken = chain, index, taken + 1
        else:
            taken += _take_copy(chain, index, tier, touched)
    if tail is not None:
        pop(tail, keep, touched)
    return taken


def _goes(chain: Chain, index: int, tier: Tier) -> bool:
    """Whether taking one copy of the block, the last of its chain, takes the block."""
    return (
        tier is Tier.DEVICE
        and (chain.odd is None or index not in chain.odd)
        and not chain.has_child(index)
    )


def _take_copy(chain: Chain, index: int, tier: Tier, touched: dict[Node, None]) -> bool:
    copies = chain.copies(index)
    if not copies[tier]:
        return False
    chain.holder.count(chain, tier, -1)
    copies = _changed(copies, tier, -1)
    chain.set_copies(index, copies)
    if copies == GHOST and index == len(chain) - 1 and not chain.has_child(index):
        pop(chain, index, touched)
    elif not any(copies[: tier + 1]):
        _reroot(chain, index)
    return True


def _changed(copies: Copies, tier: Tier, by: int) -> Copies:
    device, host, disk = copies
    if tier is Tier.DEVICE:
        return device + by, host, disk
    return (device, host + by, disk) if tier is Tier.HOST else (device, host, disk + by)


def _reroot(chain: Chain, index: int) -> None:
    """A block has its first copy on a tier, or none any more: what hangs below it may turn."""
    stack = [(chain, index)]
    while stack:
        chain, index = stack.pop()
        before = chain.rooted
        device, host, disk = (_rooted(chain, tier, index) for tier in Tier)
        after = chain.rooted = (device, host, disk)
        if after != before:
            low = min(min(pair) for pair in zip(before, after, strict=True) if pair[0] != pair[1])
        elif index == 0 and disk and not device:
            low = 0  # as far as before, but how much of the way is on which tier may have changed
        else:
            continue
        _refresh(chain, low)
        for at, children in (chain.children or {}).items():
            if at >= low:
                stack += [(child, 0) for child in children]


def _rooted(chain: Chain, tier: Tier, index: int) -> int:
    """How many blocks are rooted after a change at `index`, or above the chain if that is 0."""
    rooted = chain.rooted[tier]
    if not chain.is_open(tier):
        return 0
    if rooted < index:
        return rooted
    if rooted == index:
        return chain.first_hole(tier, index)
    return rooted if any(chain.copies(index)[: tier + 1]) else index


def _refresh(chain: Chain, low: int) -> None:
    """The blocks from `low` on are rooted otherwise than before."""
    if low >= len(chain):
        return
    for node in chain.node.up_to(chain.ends[low]):
        if chain.holder in node.chains:
            node.refresh(chain.holder)


def pop(chain: Chain, keep: int, touched: dict[Node, None]) -> None:
    """Take out the blocks from `keep` on, and the ghosts that only they kept."""
    while True:
        while keep and chain.copies(keep - 1) == GHOST and not chain.has_child(keep - 1):
            keep -= 1
        cut(chain, keep, touched)
        parent, index = chain.parent, chain.parent_index
        if keep or parent is None:
            return
        is_tail = index == len(parent) - 1 and not parent.has_child(index)
        if not is_tail or parent.copies(index) != GHOST:
            return
        chain, keep = parent, index


def cut(chain: Chain, keep: int, touched: dict[Node, None]) -> None:
    """Keep the first `keep` blocks. What copies the others have go with them; nothing may hang
    below them."""
    holder, ends, hashes = chain.holder, chain.ends, chain.hashes
    top = ends[0]
    holder.count(chain, Tier.DEVICE, keep - len(ends))
    if holder.alive:
        holder.table.remove(hashes[keep:])
    if chain.odd is not None:
        for index in range(keep, len(ends)):
            device, host, disk = chain.copies(index)
            holder.count(chain, Tier.DEVICE, 1 - device)
            holder.count(chain, Tier.HOST, -host)
            holder.count(chain, Tier.DISK, -disk)
            chain.set_copies(index, HELD_ONCE)
    del hashes[keep:], ends[keep:]
    device, host, disk = chain.rooted
    chain.rooted = (min(device, keep), min(host, keep), min(disk, keep))
    for node in chain.node.up_to(top):
        touched[node] = None
        chain.node = node
        if keep and node.start < ends[-1]:
            node.refresh(holder)
            break
        if holder in node.chains:
            node.take(chain)
    if not keep:
        _leave(chain)


def _leave(chain: Chain) -> None:
    """An empty chain is none."""
    del chain.holder.chains[chain.number]
    parent, index = chain.parent, chain.parent_index
    if parent is not None:
        assert parent.children is not None, "a parent knows its children"
        siblings = parent.children[index]
        del siblings[chain]
        if not siblings:
            del parent.children[index]
            parent.children = parent.children or None
