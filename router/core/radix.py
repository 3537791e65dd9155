"""A radix tree over bytes whose nodes carry replicas' marks: grow, split, prune, merge.

Positions are byte offsets from the start of the text. A node's edge covers [start, end); the root
of a namespace covers nothing, and marks of blocks with empty text at the very start live there.

The tree is kept canonical at once, not by a later sweep:
- a leaf ends where its last mark ends or a prediction ends, and has at least one of them;
- a node with one child differs from it in which predictions pass, or the two are merged;
- predictions cover whole edges: where one ends, a node ends.

When two nodes become one, or one becomes two, the *lower* one keeps its identity: children,
predictions and the marks near the end need no new address.
"""

from __future__ import annotations

from collections.abc import Iterable

from router.core.marks import Holder, Mark, Namespace, Run


class Node:
    """One edge of the tree and what hangs on it.

    Attributes:
        edge: The bytes from the parent's end to this node's end; empty only in a root.
        end: Where the edge ends.
        parent: None in a root, and in a node that has been cut off.
        children: By the first byte of their edge.
        runs: Rooted marks that end in this edge.
        loose: Held marks and ghosts behind a hole, and the hole itself.
        predicted: How many predictions of each replica cover this edge.
    """

    __slots__ = ("children", "edge", "end", "loose", "parent", "predicted", "runs")

    def __init__(self, edge: bytes, end: int, parent: Node | None) -> None:
        self.edge = edge
        self.end = end
        self.parent = parent
        self.children: dict[int, Node] = {}
        self.runs: dict[Holder, Run] = {}
        self.loose: dict[Holder, Run] = {}
        self.predicted: dict[Holder, int] = {}

    @property
    def start(self) -> int:
        return self.end - len(self.edge)

    def add(self, holder: Holder, mark: Mark) -> None:
        runs = self.runs if mark.rooted else self.loose
        run = runs.get(holder)
        if run is None:
            run = runs[holder] = Run()
        run.add(mark)

    def take(self, holder: Holder, mark: Mark) -> None:
        runs = self.runs if mark.rooted else self.loose
        run = runs[holder]
        run.take(mark)
        if not run.marks:
            del runs[holder]


class Root(Node):
    """The node where a namespace's texts begin."""

    __slots__ = ("namespace",)

    def __init__(self, namespace: Namespace) -> None:
        super().__init__(b"", 0, None)
        self.namespace = namespace


class Radix:
    """The nodes of all namespaces, and how many nodes and bytes they are."""

    def __init__(self) -> None:
        self.roots: dict[Namespace, Root] = {}
        self.nodes = 0
        self.bytes_stored = 0

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
                return self._extend(node, text[offset:])
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

    def _extend(self, node: Node, text: bytes) -> Node:
        """Hang `text` below `node`'s end, in a longer edge if nothing needs that end."""
        self.bytes_stored += len(text)
        if node.children or node.predicted or node.parent is None:
            child = Node(text, node.end + len(text), node)
            node.children[text[0]] = child
            self.nodes += 1
            return child
        node.edge += text
        node.end += len(text)
        return node

    def _split(self, lower: Node, position: int) -> Node:
        """Cut `lower`'s edge at `position`; the new node that ends there."""
        parent, cut = lower.parent, position - lower.start
        assert parent is not None, "a root has no edge to split"
        assert 0 < cut < len(lower.edge), "a split leaves bytes on both sides"
        upper = Node(lower.edge[:cut], position, parent)
        lower.edge = lower.edge[cut:]
        lower.parent = upper
        parent.children[upper.edge[0]] = upper
        upper.children[lower.edge[0]] = lower
        upper.predicted = dict(lower.predicted)
        self.nodes += 1
        _move_front(lower.runs, upper.runs, upper)
        _move_front(lower.loose, upper.loose, upper)
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
                    node.edge = node.edge[: needed - start]
                    node.end = needed
                return
            self.bytes_stored -= len(node.edge)
            self.nodes -= 1
            parent, node.parent = node.parent, None
            del parent.children[node.edge[0]]
            node = parent
        if isinstance(node, Root) and not (node.children or node.runs or node.loose):
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
        _join_front(upper.runs, lower.runs, lower)
        _join_front(upper.loose, lower.loose, lower)


def common_prefix(edge: bytes, text: bytes, offset: int) -> int:
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


def _last_end(node: Node) -> int:
    """Where the last mark in the node ends; 0 if it has none."""
    end = 0
    for runs in (node.runs, node.loose):
        for run in runs.values():
            end = max(end, run.ends[-1])
    return end


def _move_front(source: dict[Holder, Run], target: dict[Holder, Run], upper: Node) -> None:
    for holder in list(source):
        front = source[holder].cut(upper.end)
        if front.marks:
            target[holder] = front
            for mark in front.marks:
                mark.node = upper
        if not source[holder].marks:
            del source[holder]


def _join_front(source: dict[Holder, Run], target: dict[Holder, Run], lower: Node) -> None:
    for holder, front in source.items():
        for mark in front.marks:
            mark.node = lower
        run = target.get(holder)
        if run is None:
            target[holder] = front
        else:
            run.prepend(front)
