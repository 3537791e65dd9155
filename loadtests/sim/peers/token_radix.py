"""A radix tree over tokens, exact to the token: what approximate trees of peers are made of.

    root ── "the weather in" ─┬─ " Rome"            an edge is bytes, four a token, and is
                              └─ " Paris" ── " now"    compared with one memcmp

A split keeps the old node below and puts a new one above it, as SGLang's tree, Ray's and Preble's
do: what is known of the old node stays with the longer prefix.
"""

from dataclasses import dataclass

from loadtests.sim.peers.block_names import TOKEN_BYTES


class Node:
    """One edge and where it ends.

    Attributes:
        edge: Its tokens, four bytes each; empty only at the root.
        parent: None at the root, and once it is removed.
        children: By first token, as bytes.
        last_used: By replica, when it was last routed through here; absent: never, or evicted.
    """

    __slots__ = ("children", "edge", "last_used", "parent")

    def __init__(self, edge: bytes, parent: "Node | None") -> None:
        self.edge = edge
        self.parent = parent
        self.children: dict[bytes, Node] = {}
        self.last_used: dict[int, int] = {}

    @property
    def tokens(self) -> int:
        """Of its own edge."""
        return len(self.edge) // TOKEN_BYTES


@dataclass(frozen=True, slots=True)
class Split:
    """The node that was split, now the `lower` one, and the new one above it."""

    upper: Node
    lower: Node


class TokenRadix:
    def __init__(self) -> None:
        self.root = Node(b"", None)

    def find(self, data: bytes) -> tuple[Node, int]:
        """The deepest node that `data` reaches into, perhaps not to its end; tokens matched."""
        node, at = self.root, 0
        while at < len(data):
            child = node.children.get(data[at : at + TOKEN_BYTES])
            if child is None:
                break
            node = child
            if not data.startswith(child.edge, at):
                at += _shared(child.edge, data, at)
                break
            at += len(child.edge)
        return node, at // TOKEN_BYTES

    def insert(self, data: bytes) -> tuple[list[Node], Split | None]:
        """The path whose edges together are `data`, made where there was none.

        Returns:
            Its nodes below the root, and the split it took: an insertion leaves the tree where it
            splits, so there is one at most.
        """
        node, at = self.root, 0
        path: list[Node] = []
        split = None
        while at < len(data):
            child = node.children.get(data[at : at + TOKEN_BYTES])
            if child is None:
                child = Node(data[at:], node)
                node.children[data[at : at + TOKEN_BYTES]] = child
            elif not data.startswith(child.edge, at):
                split = self._split(child, _shared(child.edge, data, at))
                child = split.upper
            path.append(child)
            at += len(child.edge)
            node = child
        return path, split

    def remove(self, node: Node) -> None:
        """Takes off a node that has no children."""
        assert not node.children, "children go first"
        assert node.parent is not None, "the root stays"
        del node.parent.children[node.edge[:TOKEN_BYTES]]
        node.parent = None

    @staticmethod
    def _split(lower: Node, at: int) -> Split:
        parent = lower.parent
        assert parent is not None
        upper = Node(lower.edge[:at], parent)
        upper.last_used = dict(lower.last_used)
        parent.children[upper.edge[:TOKEN_BYTES]] = upper
        lower.edge = lower.edge[at:]
        lower.parent = upper
        upper.children[lower.edge[:TOKEN_BYTES]] = lower
        return Split(upper, lower)


def _shared(edge: bytes, data: bytes, at: int) -> int:
    """How many bytes of whole tokens `edge` has in common with `data` from `at` on.

    By halving: each step is one memcmp of half of what is still open.
    """
    low, high = 0, min(len(edge), len(data) - at) // TOKEN_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        start, end = low * TOKEN_BYTES, middle * TOKEN_BYTES
        if edge[start:end] == data[at + start : at + end]:
            low = middle
        else:
            high = middle - 1
    return low * TOKEN_BYTES
