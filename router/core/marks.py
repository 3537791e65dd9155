"""What one replica holds, block by block: marks on the prefix tree, chained parent to child.

A mark is one block: the place in the tree where its text ends, and how many tokens lead there.
Marks of one replica form their own trees (a block's parent is the block before it in some
prompt), beside the radix tree of text. A block the replica removed while it still holds a child
stays as a *ghost* (count 0): the child's chain is broken there until the ghost comes back.

    mark.rooted  ⇔  the block is held, and so is every block before it

Only rooted marks can be matched. Each radix node keeps its rooted marks and the others ("loose")
in two separate runs per replica, each sorted by where the blocks end.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING

from protocol.kv_events import BlockHash

if TYPE_CHECKING:
    from router.core.radix import Node

ReplicaId = str
Namespace = tuple[Hashable, ...]


class Mark:
    """One block of one replica.

    Attributes:
        hash: The engine's name for it; None for the root mark, which is no block: the place
            before the first one.
        parent: The block before it; None for the root mark.
        node: The radix node in whose edge the block's text ends: node.start < end <= node.end.
        end: Bytes of text up to and with this block.
        tokens: Tokens up to and with this block.
        count: How many copies the replica holds; 0 is a ghost.
        rooted: Held, and its parent is rooted. The root mark always is.
        child, next, previous: First child; siblings. A doubly linked list costs 24 bytes a block
            where a set per block would cost 200.
    """

    __slots__ = (
        "child",
        "count",
        "end",
        "hash",
        "next",
        "node",
        "parent",
        "previous",
        "rooted",
        "tokens",
    )

    def __init__(
        self, hash: BlockHash | None, parent: Mark | None, node: Node, end: int, tokens: int
    ) -> None:
        self.hash = hash
        self.parent = parent
        self.node = node
        self.end = end
        self.tokens = tokens
        self.count = 1
        self.rooted: bool = parent is None or parent.rooted
        self.child: Mark | None = None
        self.previous: Mark | None = None
        self.next: Mark | None = None
        if parent is not None:
            sibling = parent.child
            if sibling is not None:
                sibling.previous = self
                self.next = sibling
            parent.child = self

    def unlink(self) -> None:
        """Leave the parent's list of children."""
        assert self.parent is not None, "the root mark has no siblings"
        if self.previous is None:
            self.parent.child = self.next
        else:
            self.previous.next = self.next
        if self.next is not None:
            self.next.previous = self.previous
        self.previous = self.next = None

    def children(self) -> Iterator[Mark]:
        child = self.child
        while child is not None:
            yield child
            child = child.next

    def __repr__(self) -> str:
        return f"Mark({self.hash!r}, end={self.end}, tokens={self.tokens}, count={self.count})"


class Run:
    """Marks of one replica in one node, by (end, tokens); `ends` repeats their ends for bisect."""

    __slots__ = ("ends", "marks")

    def __init__(self) -> None:
        self.ends: list[int] = []
        self.marks: list[Mark] = []

    def add(self, mark: Mark) -> None:
        ends, marks = self.ends, self.marks
        if not ends or mark.end > ends[-1]:
            ends.append(mark.end)
            marks.append(mark)
            return
        index = bisect_right(ends, mark.end)
        # Blocks of empty text end where their parent does: more tokens come later.
        while index and ends[index - 1] == mark.end and marks[index - 1].tokens > mark.tokens:
            index -= 1
        ends.insert(index, mark.end)
        marks.insert(index, mark)

    def take(self, mark: Mark) -> None:
        marks = self.marks
        if marks[-1] is mark:
            marks.pop()
            self.ends.pop()
            return
        index = bisect_left(self.ends, mark.end)
        while marks[index] is not mark:
            index += 1
        del marks[index], self.ends[index]

    def last_before(self, position: int) -> Mark | None:
        """The last mark that ends at or before `position`."""
        index = bisect_right(self.ends, position)
        return self.marks[index - 1] if index else None

    def cut(self, position: int) -> Run:
        """Take out the marks that end at or before `position`."""
        index = bisect_right(self.ends, position)
        front = Run()
        front.ends, front.marks = self.ends[:index], self.marks[:index]
        del self.ends[:index], self.marks[:index]
        return front

    def prepend(self, front: Run) -> None:
        self.ends[:0] = front.ends
        self.marks[:0] = front.marks


class Prediction:
    """A belief that `replica` will soon hold the path to `node`; `node` is None once dropped."""

    __slots__ = ("holder", "node")

    def __init__(self, holder: Holder, node: Node | None) -> None:
        self.holder = holder
        self.node = node

    @property
    def replica(self) -> ReplicaId:
        return self.holder.replica

    @property
    def live(self) -> bool:
        return self.node is not None


class Holder:
    """All one replica holds, from its first event until it is cleared.

    A cleared replica gets a new holder; the old one is no longer `alive` and its marks are swept
    out of the tree little by little, so that clearing never takes long.

    Attributes:
        marks: Blocks by hash, ghosts too. Parents come before their children: a mark is only
            made below one that is there, and a ghost stays as long as it has children.
        roots: The root mark of each namespace where it has blocks.
        predictions: Live ones, by the node they end at.
        blocks, tokens: Held now, copies counted.
    """

    __slots__ = ("alive", "blocks", "marks", "predictions", "replica", "roots", "tokens")

    def __init__(self, replica: ReplicaId) -> None:
        self.replica = replica
        self.alive = True
        self.marks: dict[BlockHash, Mark] = {}
        self.roots: dict[Namespace, Mark] = {}
        self.predictions: dict[Node, list[Prediction]] = {}
        self.blocks = 0
        self.tokens = 0
