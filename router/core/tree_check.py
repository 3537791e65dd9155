"""What must always hold of a prefix tree, asserted over all of it. For tests and the simulator."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from router.core.marks import Holder, Mark, Run
from router.core.radix import Node, Radix, Root


def check_tree(radix: Radix, holders: Sequence[Holder]) -> None:
    nodes = list(_walk(radix))
    assert radix.nodes == len(nodes), "the node count is right"
    assert radix.bytes_stored == sum(len(node.edge) for node in nodes), "the byte count is right"
    for node in nodes:
        _check_node(node)
    placed = sum(len(run.marks) for node in nodes for _, run in _runs(node))
    assert placed == sum(len(holder.marks) for holder in holders), "every mark is in one run"
    for holder in holders:
        _check_marks(holder)
        _check_predictions(holder, nodes)


def _walk(radix: Radix) -> Iterator[Node]:
    stack: list[Node] = []
    for namespace, root in radix.roots.items():
        assert root.namespace == namespace, "a root knows its name"
        assert root.parent is None, "a root has no parent"
        assert root.edge == b"", "a root covers nothing"
        assert root.children or root.runs or root.loose, "an empty namespace is dropped"
        stack.append(root)
    while stack:
        node = stack.pop()
        yield node
        stack += node.children.values()


def _runs(node: Node) -> Iterator[tuple[bool, Run]]:
    for rooted, runs in ((True, node.runs), (False, node.loose)):
        for run in runs.values():
            yield rooted, run


def _check_node(node: Node) -> None:
    for first, child in node.children.items():
        assert child.parent is node, "children know their parent"
        assert child.edge, "an edge has bytes"
        assert child.edge[0] == first, "children are filed under their first byte"
        assert child.start == node.end, "edges join without a gap"
    last_end = 0
    for rooted, run in _runs(node):
        assert run.marks, "an empty run is dropped"
        assert run.ends == [mark.end for mark in run.marks], "ends repeat the marks' ends"
        for mark in run.marks:
            assert mark.node is node, "a mark knows its node"
            assert mark.rooted is rooted, "rooted and loose marks are kept apart"
            if not isinstance(node, Root):
                assert node.start < mark.end <= node.end, "a mark ends within its edge"
        for one, other in pairwise(run.marks):
            assert (one.end, one.tokens) <= (other.end, other.tokens), "runs are in order"
        last_end = max(last_end, run.ends[-1])
    if isinstance(node, Root):
        assert last_end == 0, "only empty texts end at a root"
        return
    assert all(count > 0 for count in node.predicted.values()), "an uncounted prediction is dropped"
    if not node.children:
        assert node.predicted or last_end == node.end, "a leaf ends where something ends"
    if len(node.children) == 1:
        (child,) = node.children.values()
        assert child.predicted != node.predicted, "an only child is joined with its parent"


def _check_marks(holder: Holder) -> None:
    blocks = tokens = 0
    seen: set[int] = set()
    for root in holder.roots.values():
        assert isinstance(root.node, Root), "a root mark is at a root"
        assert root.child is not None, "a root mark without blocks is dropped"
        assert root.rooted, "chains start at a root mark"
        assert root.end == root.tokens == 0, "a root mark is before the first block"
        seen.add(id(root))
    for hash, mark in holder.marks.items():
        assert mark.hash == hash, "marks are filed under their hash"
        assert mark.parent is not None, "only root marks have no parent"
        assert id(mark.parent) in seen, "parents come before their children"
        seen.add(id(mark))
        assert any(one is mark for one in mark.parent.children()), "a parent knows its children"
        assert mark.end >= mark.parent.end, "text goes forward"
        assert mark.tokens > mark.parent.tokens, "a block has tokens"
        assert mark.rooted == (mark.count > 0 and mark.parent.rooted) or not holder.alive
        assert mark.count >= 0, "what is removed was stored"
        assert mark.count or mark.child is not None, "a ghost has children"
        _check_siblings(mark)
        blocks += mark.count
        tokens += mark.count * (mark.tokens - mark.parent.tokens)
    if holder.alive:
        assert (holder.blocks, holder.tokens) == (blocks, tokens), "copies are counted right"


def _check_siblings(mark: Mark) -> None:
    previous = None
    for child in mark.children():
        assert child.previous is previous, "siblings are linked both ways"
        assert child.parent is mark, "children know their parent"
        previous = child


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
