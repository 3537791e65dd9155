"""What replicas may hold, guessed from what was routed there: one radix tree for all of them.

Each node knows the replicas whose prompts went through it. Nothing ever says that an engine has
evicted: the tree has a size of its own, and every so often each replica's least recently used
leaves go until it is kept. Characters and tokens both are a prefix of the same prompt, so one tree
over tokens stands for peers that index text; their sizes are divided by characters a token.

Source: sgl-project/sglang, sgl-model-gateway/src/tree.rs; ray, prefix_tree.py.
"""

import heapq
from dataclasses import dataclass

from loadtests.sim.peers.token_radix import Node, TokenRadix


@dataclass(frozen=True, slots=True)
class Match:
    """The longest prefix that any replica was sent.

    Attributes:
        tokens: How much of the prompt.
        replicas: Which were sent it, the one that used it last first.
    """

    tokens: int
    replicas: list[int]


class ApproximateTree:
    """One tree for all replicas, each bounded.

    Args:
        size_max: Tokens a replica may have in it after an eviction; None: no eviction at all.
        interval_s: Time between evictions.
    """

    def __init__(
        self, replicas: int, size_max: int | None = None, interval_s: float = 60.0
    ) -> None:
        self.sizes = [0] * replicas
        self._size_max = size_max
        self._interval_s = interval_s
        self._evict_at = interval_s
        self._radix = TokenRadix()
        self._uses = 0

    def match(self, data: bytes) -> Match:
        """The longest prefix of `data` (four bytes a token) in the tree, and whose it is."""
        node, tokens = self._radix.find(data)
        replicas = sorted(node.last_used, key=node.last_used.__getitem__, reverse=True)
        return Match(tokens, replicas)

    def insert(self, data: bytes, replica: int) -> None:
        """`data` was routed to `replica`."""
        self._uses += 1
        path, _ = self._radix.insert(data)
        for node in path:
            if replica not in node.last_used:
                self.sizes[replica] += node.tokens
            node.last_used[replica] = self._uses

    def evict(self, now: float) -> None:
        """Keeps the bound, if it is time to."""
        if self._size_max is None or now < self._evict_at:
            return
        self._evict_at = now + self._interval_s
        for replica, size in enumerate(self.sizes):
            if size > self._size_max:
                self._shrink(replica, self._size_max)

    def forget(self, replica: int) -> None:
        """Nothing in the tree is this replica's any more."""
        self._shrink(replica, 0)

    def check(self) -> None:
        """Asserts that sizes are sums, and that who has a node has all those above it."""
        sizes = [0] * len(self.sizes)
        for node in self._nodes():
            assert node.last_used, "a node is somebody's"
            for replica in node.last_used:
                sizes[replica] += node.tokens
                assert node.parent is self._radix.root or replica in _parent(node).last_used
        assert sizes == self.sizes

    def _shrink(self, replica: int, size_max: int) -> None:
        """Removes leaves, least recently used first, until the replica has `size_max` or less."""
        leaves = [
            (node.last_used[replica], order, node)
            for order, node in enumerate(self._nodes())
            if _is_leaf(node, replica)
        ]
        heapq.heapify(leaves)
        order = -1
        while leaves and self.sizes[replica] > size_max:
            _, _, node = heapq.heappop(leaves)
            parent = _parent(node)
            del node.last_used[replica]
            self.sizes[replica] -= node.tokens
            if not node.last_used:
                self._radix.remove(node)
            if _is_leaf(parent, replica):
                heapq.heappush(leaves, (parent.last_used[replica], order, parent))
                order -= 1

    def _nodes(self) -> list[Node]:
        """All but the root, parents before children."""
        nodes = list(self._radix.root.children.values())
        for node in nodes:
            nodes.extend(node.children.values())
        return nodes


def _is_leaf(node: Node, replica: int) -> bool:
    return replica in node.last_used and not any(
        replica in child.last_used for child in node.children.values()
    )


def _parent(node: Node) -> Node:
    assert node.parent is not None
    return node.parent
