"""What every replica has in its KV cache, as one radix tree over the bytes of rendered prompts.

The running example: block size 4 tokens; "a" and "b" are replicas; one letter stands for a byte.
Replica a holds two conversations that begin alike, b the first two blocks of one of them, in
blocks of other lengths; a request was just routed to b.

    a stored  1: "Hello wo"  2: "rld, how"  3: " are you"          and, below 1,  4: "man, hi"
    b stored  7: "Hello "    8: "world, h"                         predicted: "Hello woman"

    (root) ── "Hello wo" ─┬─ "rld, how are you"
              a: 1@8      │   a: 2@16 3@24
              b: 7@6      │   b: 8@14
              b predicted └─ "man" ── ", hi"
                              b predicted  a: 4@15

A *mark* such as 2@16 is a block and the byte where its text ends. A node's edge keeps, for each
replica, the marks that end within it, in order. So a request matches like this:

 1. Walk down while the prompt's next bytes are a child's whole edge: one memcmp an edge. The
    node's last mark of each replica beats that replica's marks above it.
 2. In the edge where the prompt leaves the tree, bisect for each replica's last mark before.
 3. Never count the prompt's last byte: engines recompute at least one token to have logits, so a
    block that ends where the prompt ends is no use.

"Hello world, hot!" follows the first edge whole and the second to byte 15: a: 1@8 is 4 tokens,
b: 8@14 is 8 tokens, and b is predicted to have 8 bytes.

And the tree follows the replicas' events like this:

 4. store: find the parent's mark by its hash (hashes are opaque, each replica has its own);
    blocks known already are counted once more; the texts of the others are grown below the
    parent's end in one go, splitting an edge where they differ; a mark is put at each block's end.
 5. remove: uncount the mark. With children left it stays as a *ghost*, and all below it turns
    loose (unmatched), until the ghost is stored again. Without, it goes, and so do ghosts above
    that only it kept.
 6. prune: a node nobody needs goes at once, an edge shrinks to the last mark in it, a node with
    an only child is joined with it.
 7. clear: the replica starts again with nothing; its old marks match no more and are swept out
    some at a time, so that clearing a full cache is never a pause.
 8. predict: count the path of a prompt as the replica's. A count, so that dropping one prediction
    never hides another. It ends when dropped, or when a block stored below reaches its end.

The tree knows no clock: whoever predicts also says when a prediction is too old.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from protocol.kv_events import BlockHash
from router.core.chains import MisplacedBlock, erase, known_prefix, set_rooted
from router.core.marks import Holder, Mark, Namespace, Prediction, ReplicaId, Run
from router.core.radix import Node, Radix, common_prefix
from router.core.tree_check import check_tree

# Marks swept on each event: enough to keep up with any replica that stores again what it held.
SWEEP_BLOCKS_PER_EVENT = 32

__all__ = [
    "Confirmed",
    "Match",
    "MisplacedBlock",
    "Namespace",
    "Prediction",
    "PrefixTree",
    "ReplicaId",
    "UnknownParent",
]


class UnknownParent(LookupError):
    """Blocks were stored below a block that the replica does not hold: an event was missed."""

    def __init__(self, replica: ReplicaId, parent: BlockHash) -> None:
        super().__init__(f"replica {replica}: stored below block {parent!r}, which it has not")
        self.replica = replica
        self.parent = parent


class Confirmed(NamedTuple):
    """The best unbroken chain of whole blocks: its tokens, and the byte where it ends."""

    tokens: int
    end: int


class Match(NamedTuple):
    """How much of a prompt each replica holds. Replicas that hold nothing of it are absent.

    `predicted` is the byte up to which we believe a replica will hold the prompt; the last byte of
    the prompt is never part of either.
    """

    confirmed: dict[ReplicaId, Confirmed]
    predicted: dict[ReplicaId, int]


class PrefixTree:
    """The caches of all replicas of one model. Every method takes time in what it is given, not
    in what the tree holds."""

    def __init__(self, sweep_blocks_per_event: int = SWEEP_BLOCKS_PER_EVENT) -> None:
        self._sweep_blocks_per_event = sweep_blocks_per_event
        self._radix = Radix()
        self._holders: dict[ReplicaId, Holder] = {}
        self._cleared: list[Holder] = []

    @property
    def nodes(self) -> int:
        return self._radix.nodes

    @property
    def bytes_stored(self) -> int:
        return self._radix.bytes_stored

    @property
    def unswept_blocks(self) -> int:
        """Blocks of cleared replicas that still take up memory."""
        return sum(len(holder.marks) for holder in self._cleared)

    def held_blocks(self, replica: ReplicaId) -> int:
        """Blocks the replica holds now, each copy counted."""
        holder = self._holders.get(replica)
        return 0 if holder is None else holder.blocks

    def held_tokens(self, replica: ReplicaId) -> int:
        """Tokens in the blocks the replica holds now, each copy counted."""
        holder = self._holders.get(replica)
        return 0 if holder is None else holder.tokens

    def match(self, namespace: Namespace, prompt: bytes) -> Match:
        """How much of `prompt` each replica holds, and is believed to hold soon."""
        node: Node | None = self._radix.roots.get(namespace)
        limit = len(prompt) - 1  # step 3
        if node is None or limit < 0:
            return Match({}, {})
        best: dict[Holder, Run] = dict(node.runs)
        predicted: dict[Holder, int] = {}
        position = 0
        while True:  # step 1
            child = node.children.get(prompt[position])
            if child is None:
                break
            if child.end > limit or not prompt.startswith(child.edge, position):
                break
            node, position = child, child.end
            if child.runs:
                best.update(child.runs)
            if child.predicted:
                predicted.update(dict.fromkeys(child.predicted, position))
        confirmed = {
            holder.replica: Confirmed(run.marks[-1].tokens, run.ends[-1])
            for holder, run in best.items()
            if holder.alive
        }
        if child is not None:
            self._match_within(child, prompt, position, confirmed, predicted)
        if not predicted:
            return Match(confirmed, {})
        return Match(confirmed, {holder.replica: end for holder, end in predicted.items()})

    def _match_within(
        self,
        node: Node,
        prompt: bytes,
        position: int,
        confirmed: dict[ReplicaId, Confirmed],
        predicted: dict[Holder, int],
    ) -> None:
        """Step 2: the prompt ends or differs somewhere within `node`'s edge."""
        end = min(position + common_prefix(node.edge, prompt, position), len(prompt) - 1)
        if end <= position:
            return
        for holder, run in node.runs.items():
            mark = run.last_before(end)
            if mark is not None and holder.alive:
                confirmed[holder.replica] = Confirmed(mark.tokens, mark.end)
        for holder in node.predicted:
            predicted[holder] = end

    def store(
        self,
        replica: ReplicaId,
        namespace: Namespace,
        hashes: Sequence[BlockHash],
        parent: BlockHash | None,
        texts: Sequence[bytes],
        block_size: int,
    ) -> None:
        """The replica now holds these blocks, each the child of the one before it.

        Args:
            namespace: Where the first block's text begins if it has no parent; else not looked at.
            parent: The block before the first; None at the start of a prompt.
            texts: The bytes of each block's tokens, possibly empty or cut within a character.
            block_size: Tokens a block.

        Raises:
            UnknownParent: The replica does not hold `parent`. Nothing was changed.
            MisplacedBlock: One of the hashes is held at another place. Nothing was changed.
        """
        assert len(hashes) == len(texts), "one text a block"
        assert block_size > 0, "a block has tokens"
        if not hashes:
            return
        holder = self._holder(replica)
        above: Mark | None
        if parent is None:
            above = holder.roots.get(namespace)
        else:
            above = holder.marks.get(parent)
            if above is None or not above.count:
                raise UnknownParent(replica, parent)
        known = known_prefix(holder, hashes, above, texts, block_size)
        if above is None:
            above = Mark(None, None, self._radix.root(namespace), 0, 0)
            holder.roots[namespace] = above
        for hash in hashes[:known]:
            above = holder.marks[hash]
            above.count += 1
            if above.count == 1 and above.parent is not None and above.parent.rooted:
                set_rooted(holder, above, True)
        if known < len(hashes):
            above = self._hang(holder, above, hashes[known:], texts[known:], block_size)
        holder.blocks += len(hashes)
        holder.tokens += len(hashes) * block_size
        if holder.predictions:
            self._drop_overtaken(holder, above)
        if self._cleared:
            self.sweep(len(hashes) + self._sweep_blocks_per_event)

    def _hang(
        self,
        holder: Holder,
        above: Mark,
        hashes: Sequence[BlockHash],
        texts: Sequence[bytes],
        block_size: int,
    ) -> Mark:
        """Step 4: new blocks in a chain below `above`; the last one."""
        node = self._radix.grow(above.node, above.end, b"".join(texts))
        path = [node]
        while node.start >= above.end and node.parent is not None:
            node = node.parent
            path.append(node)
        node = path.pop()
        end, tokens = above.end, above.tokens
        for hash, text in zip(hashes, texts, strict=True):
            end += len(text)
            tokens += block_size
            while end > node.end:
                node = path.pop()
            above = Mark(hash, above, node, end, tokens)
            holder.marks[hash] = above
            node.add(holder, above)
        return above

    def remove(self, replica: ReplicaId, hashes: Iterable[BlockHash]) -> int:
        """The replica dropped one copy of each of these blocks; how many of them it had."""
        holder = self._holders.get(replica)
        if holder is None:
            return 0
        known = 0
        touched: dict[Node, None] = {}
        for hash in hashes:
            mark = holder.marks.get(hash)
            if mark is None or not mark.count:
                continue
            assert mark.parent is not None, "only blocks have hashes"
            known += 1
            mark.count -= 1
            holder.blocks -= 1
            holder.tokens -= mark.tokens - mark.parent.tokens
            if mark.count:
                continue
            if mark.child is None:
                erase(holder, mark, touched)
            elif mark.rooted:
                set_rooted(holder, mark, False)
        self._radix.prune(touched)
        return known

    def clear(self, replica: ReplicaId) -> None:
        """The replica holds nothing any more, and nothing is predicted of it (step 7)."""
        holder = self._holders.pop(replica, None)
        if holder is None:
            return
        holder.alive = False
        for predictions in list(holder.predictions.values()):
            for prediction in list(predictions):
                self.drop(prediction)
        if holder.marks:
            self._cleared.append(holder)
            self.sweep(self._sweep_blocks_per_event)

    def forget(self, replica: ReplicaId) -> None:
        """The replica is gone. What it held is dropped as by `clear`."""
        self.clear(replica)

    def sweep(self, blocks: int) -> bool:
        """Free up to `blocks` blocks of cleared replicas; whether there are more."""
        touched: dict[Node, None] = {}
        while self._cleared and blocks > 0:
            holder = self._cleared[-1]
            # The newest mark has no child: parents come before children.
            _, mark = holder.marks.popitem()
            mark.count = 0
            blocks -= erase(holder, mark, touched)
            if not holder.marks:
                self._cleared.pop()
        self._radix.prune(touched)
        return bool(self._cleared)

    def predict(self, namespace: Namespace, prompt: bytes, replica: ReplicaId) -> Prediction:
        """Believe that the replica will hold `prompt`, until dropped or overtaken (step 8)."""
        holder = self._holder(replica)
        if not prompt:
            return Prediction(holder, None)
        root = self._radix.root(namespace)
        node = self._radix.boundary(self._radix.grow(root, 0, prompt), len(prompt))
        prediction = Prediction(holder, node)
        holder.predictions.setdefault(node, []).append(prediction)
        above: Node | None = node
        while above is not None and above.parent is not None:
            above.predicted[holder] = above.predicted.get(holder, 0) + 1
            above = above.parent
        return prediction

    def drop(self, prediction: Prediction) -> None:
        """Believe it no longer. Dropping twice is fine."""
        end, holder = prediction.node, prediction.holder
        if end is None:
            return
        prediction.node = None
        siblings = holder.predictions[end]
        siblings.remove(prediction)
        if not siblings:
            del holder.predictions[end]
        node: Node | None = end
        while node is not None and node.parent is not None:
            node.predicted[holder] -= 1
            if not node.predicted[holder]:
                del node.predicted[holder]
            node = node.parent
        self._radix.prune((end,))

    def _drop_overtaken(self, holder: Holder, mark: Mark) -> None:
        """Drop the replica's predictions that end on the way to a block it has stored."""
        overtaken: list[Prediction] = []
        node: Node | None = mark.node
        while node is not None:
            if node.end <= mark.end:
                overtaken += holder.predictions.get(node, ())
            node = node.parent
        for prediction in overtaken:
            self.drop(prediction)

    def _holder(self, replica: ReplicaId) -> Holder:
        holder = self._holders.get(replica)
        if holder is None:
            holder = self._holders[replica] = Holder(replica)
        return holder

    def check(self) -> None:
        """Assert what must always hold. Slow: it looks at everything."""
        check_tree(self._radix, [*self._holders.values(), *self._cleared])
