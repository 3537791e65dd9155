"""What must always hold of a prefix tree, asserted over all of it. For tests and the simulator."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from router.core.chains import GHOST, Chain, Holder, Tier, place_of
from router.core.radix import Node, Radix, Root


def check_tree(radix: Radix, holders: Sequence[Holder]) -> None:
    nodes = list(_walk(radix))
    assert radix.nodes == len(nodes), "the node count is right"
    assert radix.bytes_stored == sum(len(node.edge) for node in nodes), "the byte count is right"
    for node in nodes:
        _check_node(node)
    reachable = set(nodes)
    for holder in holders:
        _check_holder(holder, reachable)
        _check_predictions(holder, nodes)


def _walk(radix: Radix) -> Iterator[Node]:
    stack: list[Node] = []
    for namespace, root in radix.roots.items():
        assert root.namespace == namespace, "a root knows its name"
        assert root.parent is None, "a root has no parent"
        assert root.edge == b"", "a root covers nothing"
        assert root.children or root.chains, "an empty namespace is dropped"
        stack.append(root)
    while stack:
        node = stack.pop()
        yield node
        stack += node.children.values()


def _check_node(node: Node) -> None:
    for first, child in node.children.items():
        assert child.parent is node, "children know their parent"
        assert child.edge, "an edge has bytes"
        assert child.edge[0] == first, "children are filed under their first byte"
        assert child.start == node.end, "edges join without a gap"
    last_end = 0
    for holder, chains in node.chains.items():
        assert chains, "no chains are no entry"
        assert len(set(chains)) == len(chains), "a chain is told once"
        rooted = []
        for chain in chains:
            assert chain.holder is holder, "chains are filed under their holder"
            ends = [end for end in chain.ends if node.start < end <= node.end]
            assert ends, "a chain told here has a block that ends here"
            last_end = max(last_end, ends[-1])
            count = chain.rooted[Tier.DISK]
            ends = [end for end in chain.ends[:count] if node.start < end <= node.end]
            if ends:
                last = chain.last_before(node.end)
                assert last is not None
                rooted.append(last)
        best = node.last.get(holder)
        assert (best is None) == (not rooted), "the last rooted block is there"
        for one in rooted:
            assert best is not None
            assert (one.end, one.tokens) <= (best.end, best.tokens), "the last block is the last"
        assert best is None or best in rooted, "the last rooted block is right"
    assert node.last.keys() <= node.chains.keys(), "what is last is there"
    if isinstance(node, Root):
        return
    assert all(count > 0 for count in node.predicted.values()), "an uncounted prediction is dropped"
    if not node.children:
        assert node.predicted or last_end == node.end, "a leaf ends where something ends"
    if len(node.children) == 1:
        (child,) = node.children.values()
        assert child.predicted != node.predicted, "an only child is joined with its parent"


def _check_holder(holder: Holder, nodes: set[Node]) -> None:
    blocks, tokens = [0, 0, 0], [0, 0, 0]
    places: dict[int, int] = {}
    for number, chain in holder.chains.items():
        assert chain.number == number < holder.chain_numbers, "chains are filed by number"
        assert len(chain) == len(chain.hashes) > 0, "a chain has blocks"
        _check_chain(chain, nodes)
        for index, hash in enumerate(chain.hashes):
            assert hash not in places, "a hash is at one place"
            places[hash] = place_of(number, index)
            for tier in Tier:
                blocks[tier] += chain.copies(index)[tier]
                tokens[tier] += chain.copies(index)[tier] * chain.block_size
    if holder.alive:
        assert (holder.blocks, holder.tokens) == (blocks, tokens), "copies are counted right"
        holder.table.check()
        assert dict(holder.table) == places, "the table knows every place"


def _check_chain(chain: Chain, nodes: set[Node]) -> None:
    count, parent = len(chain), chain.parent
    assert all(one <= other for one, other in pairwise(chain.ends)), "text goes forward"
    last = count - 1
    if chain.holder.alive:  # a sweep takes what is below first
        needed = chain.copies(last) != GHOST or chain.has_child(last)
        assert needed, "a ghost has something below it"
    start = 0
    if parent is None:
        assert chain.start_tokens == 0, "nothing is before the first block"
    else:
        start = parent.ends[chain.parent_index]
        assert chain.start_tokens == parent.tokens(chain.parent_index + 1), "tokens are counted"
        assert parent.children is not None, "a parent knows its children"
        assert chain in parent.children[chain.parent_index], "a parent knows its children"
        assert parent.holder.chains[parent.number] is parent, "a parent is there"
        assert parent.root is chain.root, "a namespace is not left"
    assert chain.ends[0] >= start, "text goes forward"
    for tier in Tier:
        rooted = 0
        if parent is None or parent.rooted[tier] > chain.parent_index:
            while rooted < count and any(chain.copies(rooted)[: tier + 1]):
                rooted += 1
        assert chain.rooted[tier] == rooted, "what is rooted is told right"
    if chain.odd is not None:
        assert chain.odd, "no odd copies are none"
        assert max(chain.odd) < count, "odd copies are of blocks that are there"
        assert all(min(copies) >= 0 for copies in chain.odd.values()), "what goes was there"
    told = set()
    node: Node | None = chain.node
    assert node is not None
    assert node.start < chain.ends[-1] <= node.end, "a chain knows where it ends"
    while node is not None:
        assert node in nodes, "a chain runs through the tree"
        told |= {index for index, end in enumerate(chain.ends) if node.start < end <= node.end}
        has_block = any(node.start < end <= node.end for end in chain.ends)
        assert (chain in node.chains.get(chain.holder, ())) == has_block, "nodes know their chains"
        top, node = node, node.parent
    assert top is chain.root, "a chain is in its namespace"
    assert len(told) == count, "every block ends in a node"


def _check_predictions(holder: Holder, nodes: Sequence[Node]) -> None:
    assert holder.alive or not holder.predictions, "nothing is predicted of a cleared replica"
    counts: dict[Node, int] = {}
    for end, predictions in holder.predictions.items():
        assert predictions, "an empty list of predictions is dropped"
        assert all(one.node is end for one in predictions), "a prediction knows where it ends"
        node: Node | None = end
        while node is not None and node.parent is not None:
            counts[node] = counts.get(node, 0) + len(predictions)
            node = node.parent
    for node in nodes:
        assert node.predicted.get(holder, 0) == counts.get(node, 0), "predictions are counted right"
