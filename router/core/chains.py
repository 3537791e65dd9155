"""Chains of blocks: the marks an event means, what turns loose with a hole, what goes for good."""

from collections.abc import Sequence

from protocol.kv_events import BlockHash
from router.core.marks import Holder, Mark, ReplicaId
from router.core.radix import Node, Root


class MisplacedBlock(ValueError):
    """A known hash was stored again at another place: the replica's hashes lie."""

    def __init__(self, replica: ReplicaId, hash: BlockHash) -> None:
        super().__init__(f"replica {replica}: block {hash!r} was stored at two places")
        self.replica = replica
        self.hash = hash


def known_prefix(
    holder: Holder,
    hashes: Sequence[BlockHash],
    above: Mark | None,
    texts: Sequence[bytes],
    block_size: int,
) -> int:
    """How many of `hashes` have marks already: always the first ones, as parents come first.

    Raises:
        MisplacedBlock: A mark is not where these hashes and texts put it.
    """
    marks = holder.marks
    known = 0
    for hash, text in zip(hashes, texts, strict=True):
        mark = marks.get(hash)
        if mark is None:
            break
        if (
            above is None
            or mark.parent is not above
            or mark.end != above.end + len(text)
            or mark.tokens != above.tokens + block_size
        ):
            raise MisplacedBlock(holder.replica, hash)
        above = mark
        known += 1
    if known < len(hashes):
        seen = set(hashes[:known])
        for hash in hashes[known:]:
            if hash in marks or hash in seen:
                raise MisplacedBlock(holder.replica, hash)
            seen.add(hash)
    return known


def set_rooted(holder: Holder, top: Mark, rooted: bool) -> None:
    """Move `top`, and the held chains below it, between matched and loose."""
    stack = [top]
    while stack:
        mark = stack.pop()
        mark.node.take(holder, mark)
        mark.rooted = rooted
        mark.node.add(holder, mark)
        stack += [one for one in mark.children() if one.count and one.rooted is not rooted]


def erase(holder: Holder, mark: Mark, touched: dict[Node, None]) -> int:
    """Step 5: take out a childless mark and the ghosts that only it kept; how many."""
    erased = 0
    while True:
        parent = mark.parent
        assert mark.hash is not None, "a root mark is no block"
        assert parent is not None, "a block hangs below something"
        assert mark.child is None, "only childless marks are erased"
        mark.node.take(holder, mark)
        touched[mark.node] = None
        mark.unlink()
        holder.marks.pop(mark.hash, None)  # the sweep has taken it already
        erased += 1
        if parent.child is not None or parent.count:
            break
        mark = parent
    if parent.parent is None and parent.child is None:
        assert isinstance(parent.node, Root), "a root mark is at a root"
        del holder.roots[parent.node.namespace]
        touched[parent.node] = None
    return erased
