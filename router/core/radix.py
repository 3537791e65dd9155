"""A radix tree over bytes whose nodes know the chains of blocks that end in them.

Positions are byte offsets from the start of the text. A node's edge covers [start, end); a block
whose text ends at position p belongs to the node with start < p <= end. The root of a namespace
covers nothing and starts before everything: blocks of empty text at the very start live there.

The tree is kept canonical at once, not by a later sweep:
- a leaf ends where its last block ends or a prediction ends, and has at least one of them;
- a node with one child differs from it in which predictions pass, or the two are merged;
- predictions cover whole edges: where one ends, a node ends.

When two nodes become one, or one becomes two, the *lower* one keeps its identity: children,
predictions and the chains that go on need no new address.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from router.core.chains import Chain, Confirmed, Holder
from router.core.ids import Namespace

# Edges at least this long that grow or shrink at their end do so in place.
_LONG_EDGE_BYTES = 4096


class Node:
    """One edge of the tree and what hangs on it.

    Attributes:
        edge: The bytes from the parent's end to this node's end; empty only in a root.
        end: Where the edge ends.
        parent: None in a root, and in a node that has been cut off.
        children: By the first byte of their edge.
        chains: Of each replica, the chains with blocks that end in this edge.
        last: Of each replica, the rooted blocks up to the last one that ends in this edge.
        predicted: How many predictions of each replica cover this edge.
        used: The moment a prompt last matched it.
    """

    __slots__ = ("chains", "children", "edge", "end", "last", "parent", "predicted", "used")

    def __init__(self, edge: bytes | bytearray, end: int, parent: Node | None) -> None:
        self.edge = edge
        self.end = end
        self.parent = parent
        self.children: dict[int, Node] = {}
        self.chains: dict[Holder, tuple[Chain, ...]] = {}
        self.last: dict[Holder, Confirmed] = {}
        self.predicted: dict[Holder, int] = {}
        self.used = 0

    @property
    def start(self) -> int:
        return self.end - len(self.edge)

    def up_to(self, position: int) -> Iterator[Node]:
        """This node and those above it, up to the one that a block ending at `position` ends in."""
        node = self
        yield node
        while node.start >= position:
            assert node.parent is not None, "a root starts before everything"
            node = node.parent
            yield node

    def put(self, chain: Chain) -> None:
        """Blocks of `chain` end here, perhaps more than before."""
        holder = chain.holder
        chains = self.chains.get(holder)
        if chains is None:
            self.chains[holder] = (chain,)
        elif chain not in chains:
            self.chains[holder] = (*chains, chain)
        self.refresh(holder)

    def take(self, chain: Chain) -> None:
        """No block of `chain` ends here any more."""
        holder = chain.holder
        chains = tuple(one for one in self.chains[holder] if one is not chain)
        if chains:
            self.chains[holder] = chains
        else:
            del self.chains[holder]
        self.refresh(holder)

    def refresh(self, holder: Holder) -> None:
        """See anew which of the replica's rooted blocks is the last here."""
        best = self.last_before(holder, self.end)
        if best is not None:
            self.last[holder] = best
        elif holder in self.last:
            del self.last[holder]

    def last_before(self, holder: Holder, position: int) -> Confirmed | None:
        """The replica's rooted blocks that end here, at or before `position`."""
        best = None
        start = self.start
        for chain in self.chains.get(holder, ()):
            last = chain.last_before(position)
            if last is not None and last.end > start and (best is None or _further(last, best)):
                best = last
        return best


class Root(Node):
    """The node where a namespace's texts begin."""

    __slots__ = ("namespace",)

    def __init__(self, namespace: Namespace) -> None:
        super().__init__(b"", 0, None)
        self.namespace = namespace

    @property
    def start(self) -> int:
        return -1


class Radix:
    """The nodes of all namespaces, and how many nodes and bytes they are."""

    def __init__(self) -> None:
        self.roots: dict[Namespace, Root] = {}
        self.nodes = 0
        self.bytes_stored = 0
        self.moment = 0  # what matching writes on the nodes it passes: a coarse clock

    def root(self, namespace: Namespace) -> Root:
        """The namespace's root, made if need be; `prune` it if nothing is put below."""
        root = self.roots.get(namespace)
        if root is None:
            root = self.roots[namespace] = Root(namespace)
            self.nodes += 1
        return root

    def grow(self, node: Node, position: int, text: bytes) -> Node:
        """Make sure `text` can be read from `position` in `node`'s edge; the node it ends in."""
        if position < node.end and text:
            rest = node.edge[position - node.end :]
            common = common_prefix(rest, text, 0)
            if common == len(text):
                return node
            if common < len(rest):
                node = self._split(node, position + common)
            offset = common
        else:
            offset = 0
        while offset < len(text):
            child = node.children.get(text[offset])
            if child is None:
                return self.extend(node, text[offset:])
            if text.startswith(child.edge, offset):
                offset += len(child.edge)
                node = child
                continue
            common = common_prefix(child.edge, text, offset)
            if offset + common == len(text):
                return child
            node = self._split(child, node.end + common)
            offset += common
        return node

    def boundary(self, node: Node, position: int) -> Node:
        """The node that ends at `position`, which lies in `node`'s edge: split there if need be."""
        return node if position == node.end else self._split(node, position)

    def extend(self, node: Node, text: bytes) -> Node:
        """Hang `text` below `node`'s end, in a longer edge if nothing needs that end."""
        self.bytes_stored += len(text)
        if node.children or node.predicted or node.parent is None:
            child = Node(text, node.end + len(text), node)
            child.used = self.moment
            node.children[text[0]] = child
            self.nodes += 1
            return child
        _make_mutable_if_long(node)
        node.used = self.moment
        node.edge += text
        node.end += len(text)
        return node

    def _split(self, lower: Node, position: int) -> Node:
        """Cut `lower`'s edge at `position`; the new node that ends there."""
        parent, cut = lower.parent, position - lower.start
        assert parent is not None, "a root has no edge to split"
        assert 0 < cut < len(lower.edge), "a split leaves bytes on both sides"
        upper = Node(bytes(lower.edge[:cut]), position, parent)
        lower.edge = lower.edge[cut:]
        lower.parent = upper
        parent.children[upper.edge[0]] = upper
        upper.children[lower.edge[0]] = lower
        upper.predicted = dict(lower.predicted)
        upper.used = lower.used
        self.nodes += 1
        _move_up(lower, upper)
        return upper

    def prune(self, nodes: Iterable[Node]) -> None:
        """Restore the canonical form around nodes that lost a mark or a prediction."""
        for node in nodes:
            self._prune(node)

    def _prune(self, node: Node) -> None:
        while node.parent is not None:
            if node.children:
                self._merge(node)
                return
            needed = node.end if node.predicted else _last_end(node)
            start = node.start
            if needed > start:
                self.bytes_stored -= node.end - needed
                if needed < node.end:
                    _make_mutable_if_long(node)
                    if isinstance(node.edge, bytearray):
                        del node.edge[needed - start :]
                    else:
                        node.edge = node.edge[: needed - start]
                    node.end = needed
                return
            self.bytes_stored -= len(node.edge)
            self.nodes -= 1
            parent, node.parent = node.parent, None
            del parent.children[node.edge[0]]
            node = parent
        if isinstance(node, Root) and not (node.children or node.chains):
            if self.roots.get(node.namespace) is not node:
                return  # pruned before
            del self.roots[node.namespace]
            self.nodes -= 1

    def _merge(self, upper: Node) -> None:
        """Join `upper` with its child if it is the only one and no prediction ends between."""
        if len(upper.children) != 1 or upper.parent is None:
            return
        (lower,) = upper.children.values()
        if lower.predicted != upper.predicted:
            return
        lower.edge = upper.edge + lower.edge
        lower.parent, upper.parent = upper.parent, None
        lower.parent.children[lower.edge[0]] = lower
        self.nodes -= 1
        lower.used = max(lower.used, upper.used)
        _move_down(upper, lower)


def common_prefix(edge: bytes | bytearray, text: bytes, offset: int) -> int:
    """How many leading bytes of `edge` stand in `text` at `offset`: bisection over memcmp."""
    low, high = 0, min(len(edge), len(text) - offset)
    if text.startswith(edge[:high], offset):
        return high
    # edge[:low] is there, edge[:high] is not
    while high - low > 1:
        middle = (low + high) // 2
        if text.startswith(edge[low:middle], offset + low):
            low = middle
        else:
            high = middle
    return low


def _further(one: Confirmed, other: Confirmed) -> bool:
    """Of runs that end alike, the one with more tokens, then the one on faster tiers."""
    return (one.end, one.tokens, -one.host_tokens - one.disk_tokens, -one.disk_tokens) > (
        other.end, other.tokens, -other.host_tokens - other.disk_tokens, -other.disk_tokens
    )  # fmt: skip


def _make_mutable_if_long(node: Node) -> None:
    if len(node.edge) >= _LONG_EDGE_BYTES and not isinstance(node.edge, bytearray):
        node.edge = bytearray(node.edge)


def _last_end(node: Node) -> int:
    """Where the last block in a leaf ends; 0 if it has none."""
    last = 0
    for chains in node.chains.values():
        for chain in chains:
            end = chain.ends[-1]
            if end == node.end:
                return end
            last = max(last, end)
    return last


def _move_up(lower: Node, upper: Node) -> None:
    """After a split: the blocks that end in `upper` are told there."""
    start, position = upper.start, upper.end
    for holder, chains in list(lower.chains.items()):
        above, below = [], []
        for chain in chains:
            ends = chain.ends
            count = bisect_right(ends, position)
            if count and ends[count - 1] > start:
                above.append(chain)
            if count == len(ends):
                chain.node = upper
            elif ends[count] <= lower.end:
                below.append(chain)
        if above:
            upper.chains[holder] = tuple(above)
            upper.refresh(holder)
            last = lower.last.get(holder)
            if last is not None and last.end <= position:
                del lower.last[holder]
        if not below:
            del lower.chains[holder]
        elif len(below) < len(chains):
            lower.chains[holder] = tuple(below)


def _move_down(upper: Node, lower: Node) -> None:
    """Before a merge: the blocks that end in `upper` are told in `lower`."""
    for holder, above in upper.chains.items():
        below = lower.chains.get(holder)
        for chain in above:
            if chain.node is upper:
                chain.node = lower
        if below is None:
            lower.chains[holder] = above
        else:
            lower.chains[holder] = (*above, *(chain for chain in below if chain not in above))
    for holder, last in upper.last.items():
        lower.last.setdefault(holder, last)
