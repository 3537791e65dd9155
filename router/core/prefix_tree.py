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

2@16 is a block and the byte where its text ends. Blocks are kept in *chains*, each the child of
the one before: a has the chains [1 2 3] and, below its first block, [4]. A node knows which
chains have blocks that end in its edge, and of each replica the last of these. So a request
matches like this:

 1. Walk down while the prompt's next bytes are a child's whole edge: one memcmp an edge. The
    node's last block of each replica beats that replica's blocks above it.
 2. In the edge where the prompt leaves the tree, bisect for each replica's last block before.
 3. Never count the prompt's last byte: engines recompute at least one token to have logits, so a
    block that ends where the prompt ends is no use.

"Hello world, hot!" follows the first edge whole and the second to byte 15: a: 1@8 is 4 tokens,
b: 8@14 is 8 tokens, and b is predicted to have 8 bytes.

And the tree follows the replicas' events like this:

 4. store: find the parent by its hash (hashes are opaque, each replica has its own); blocks known
    already have one copy more; the texts of the others are grown below the parent's end in one
    go, splitting an edge where they differ; they lengthen the parent's chain or begin one.
 5. remove: one copy less. The last copy of a block with another below stays as a *ghost*, which
    cuts off all below it until it is stored again. Without, the block goes, and so do ghosts
    above that only it kept.
 6. prune: a node nobody needs goes at once, an edge shrinks to the last block in it, a node with
    an only child is joined with it.
 7. clear: the replica starts again with nothing; its old chains match no more and are swept out
    some at a time, so that clearing a full cache is never a pause.
 8. predict: count the path of a prompt as the replica's. A count, so that dropping one prediction
    never hides another. It ends when dropped, or when a block stored below reaches its end.
 9. keep within a bound: too large, the tree forgets what was used longest ago, what no live replica
    holds before all else. To forget is to claim less, never something wrong.

The tree knows no clock: whoever predicts also says when a prediction is too old.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

from router.core.chain_edits import (
    MisplacedBlock,
    UnknownParent,
    add_copy,
    append,
    append_to_leaf,
    cut,
    known_places,
    take_copies,
)
from router.core.chains import (
    CHAIN_BLOCKS_MAX,
    Chain,
    Confirmed,
    Holder,
    Prediction,
    Tier,
    place_of,
)
from router.core.forgetting import BLOCK_BYTES, NODE_BYTES, forget_some
from router.core.ids import Namespace, ReplicaId
from router.core.predicted_paths import drop, drop_overtaken, predict
from router.core.radix import Node, Radix, common_prefix
from router.core.tree_check import check_tree

# Chains swept on each event: enough to keep up with any replica that stores again what it held.
SWEEP_CHAINS_PER_EVENT = 2
# A swept-out chain's part of its table of places, about.
_SWEEP_BUCKETS_PER_CHAIN = 8
_SWEEP_CHAINS_PER_SAMPLE = 64

__all__ = [
    "Confirmed",
    "Match",
    "MisplacedBlock",
    "Prediction",
    "PrefixTree",
    "Tier",
    "UnknownParent",
]


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

    def __init__(self, sweep_chains_per_event: int = SWEEP_CHAINS_PER_EVENT) -> None:
        self._sweep_chains_per_event = sweep_chains_per_event
        self._radix = Radix()
        self._holders: dict[ReplicaId, Holder] = {}
        self._cleared: list[Holder] = []
        self.forgotten_blocks = 0

    @property
    def nodes(self) -> int:
        return self._radix.nodes

    @property
    def bytes_stored(self) -> int:
        return self._radix.bytes_stored

    @property
    def bytes_resident(self) -> int:
        """About what the tree takes up in memory, all in."""
        holders = (*self._holders.values(), *self._cleared)
        blocks = sum(len(holder.table) for holder in holders)
        return self.bytes_stored + blocks * BLOCK_BYTES + self.nodes * NODE_BYTES

    @property
    def unswept_chains(self) -> int:
        """Chains of cleared replicas that still take up memory."""
        return sum(len(holder.chains) for holder in self._cleared)

    def held_blocks(self, replica: ReplicaId, tier: Tier = Tier.DEVICE) -> int:
        """Blocks the replica holds now on that tier, each copy counted."""
        holder = self._holders.get(replica)
        return 0 if holder is None else holder.blocks[tier]

    def held_tokens(self, replica: ReplicaId, tier: Tier = Tier.DEVICE) -> int:
        """Tokens in the blocks the replica holds now on that tier, each copy counted."""
        holder = self._holders.get(replica)
        return 0 if holder is None else holder.tokens[tier]

    def match(self, namespace: Namespace, prompt: bytes) -> Match:
        """How much of `prompt` each replica holds, and is believed to hold soon."""
        node: Node | None = self._radix.roots.get(namespace)
        limit = len(prompt) - 1  # step 3
        if node is None or limit < 0:
            return Match({}, {})
        best: dict[Holder, Confirmed] = dict(node.last)
        predicted: dict[Holder, int] = {}
        position, moment = 0, self._radix.moment
        while True:  # step 1
            child = node.children.get(prompt[position])
            if child is None:
                break
            if child.end > limit or not prompt.startswith(child.edge, position):
                break
            node, position = child, child.end
            node.used = moment
            if node.last:
                best.update(node.last)
            if node.predicted:
                predicted.update(dict.fromkeys(node.predicted, position))
        if child is not None:
            child.used = moment
            _match_within(child, prompt, position, best, predicted)
        confirmed = {holder.replica: last for holder, last in best.items() if holder.alive}
        if not predicted:
            return Match(confirmed, {})
        return Match(confirmed, {holder.replica: end for holder, end in predicted.items()})

    def store(
        self,
        replica: ReplicaId,
        namespace: Namespace,
        hashes: Sequence[int],
        parent: int | None,
        texts: Sequence[bytes],
        block_size: int,
        tier: Tier = Tier.DEVICE,
    ) -> None:
        """The replica now holds these blocks, each the child of the one before it.

        Args:
            namespace: Where the first block's text begins if it has no parent; else not looked at.
            hashes: The engine's names for them, unsigned 64-bit.
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
        above: tuple[Chain, int] | None = None
        if parent is not None:
            above = holder.find(parent)
            if above is None or not any(above[0].copies(above[1])):
                raise UnknownParent(replica, parent)
            if len(hashes) == 1 and tier is Tier.DEVICE and not self._cleared:
                chain, index = above
                is_next = index == len(chain) - 1 and chain.block_size == block_size
                if is_next and append_to_leaf(chain, hashes[0], texts[0], self._radix):
                    if holder.predictions:
                        drop_overtaken(self._radix, chain, index + 1)
                    return
        known = known_places(holder, namespace, hashes, above, texts, block_size)
        new = len(known)
        if known:
            above = known[-1]
        if new < len(hashes):
            above = self._hang(
                holder, namespace, above, hashes[new:], texts[new:], block_size, tier
            )
        for place in known:
            add_copy(*place, tier)
        if holder.predictions:
            assert above is not None, "something was stored"
            drop_overtaken(self._radix, *above)
        if self._cleared:
            self.sweep(self._sweep_chains_per_event)

    def _hang(
        self,
        holder: Holder,
        namespace: Namespace,
        above: tuple[Chain, int] | None,
        hashes: Sequence[int],
        texts: Sequence[bytes],
        block_size: int,
        tier: Tier,
    ) -> tuple[Chain, int]:
        """Step 4: new blocks in a row below `above`; where the last one is.

        Raises MisplacedBlock: one of them is known. Nothing was changed.
        """
        chain, first = None, 0
        if above is not None:
            chain, first = above[0], above[1] + 1
            is_tail = first == len(chain) and chain.block_size == block_size
            if not is_tail or first + len(hashes) > CHAIN_BLOCKS_MAX:
                chain, first = None, 0
        number = holder.chain_numbers if chain is None else chain.number
        misplaced = holder.table.add(hashes, place_of(number, first))
        if misplaced is not None:
            raise MisplacedBlock(holder.replica, misplaced)
        if above is None:
            root = self._radix.root(namespace)
            node, end = self._radix.grow(root, 0, b"".join(texts)), 0
            chain = Chain(holder, root, None, 0, block_size)
        else:
            parent, index = above
            end = parent.ends[index]
            node = self._radix.grow(parent.node_of(index), end, b"".join(texts))
            if chain is None:
                chain = Chain(holder, parent.root, parent, index, block_size)
        append(chain, hashes, texts, end, node, tier)
        return chain, len(chain) - 1

    def hold(self, replica: ReplicaId, hashes: Iterable[int], tier: Tier) -> int:
        """The replica has one copy more of each of these blocks on a tier; how many it knows.

        For events that name blocks by nothing but their hashes. The others are lost on us.
        """
        holder = self._holders.get(replica)
        known = 0
        for hash in hashes:
            place = None if holder is None else holder.find(hash)
            if place is not None:
                add_copy(*place, tier)
                known += 1
        return known

    def remove(self, replica: ReplicaId, hashes: Iterable[int], tier: Tier = Tier.DEVICE) -> int:
        """The replica dropped one copy of each of these blocks; how many of them it had."""
        holder = self._holders.get(replica)
        if holder is None:
            return 0
        touched: dict[Node, None] = {}
        known = take_copies(holder, hashes, tier, touched)
        self._radix.prune(touched)
        return known

    def clear(self, replica: ReplicaId) -> None:
        """The replica holds nothing any more, and nothing is predicted of it (step 7)."""
        holder = self._holders.pop(replica, None)
        if holder is None:
            return
        holder.alive = False
        for prediction in [one for some in holder.predictions.values() for one in some]:
            self.drop(prediction)
        if holder.chains:
            self._cleared.append(holder)
            self.sweep(self._sweep_chains_per_event)

    def reserve(self, replica: ReplicaId, blocks: int) -> None:
        """Make room for so many blocks of a replica that holds nothing yet, in one go."""
        self._holder(replica).table.reserve(blocks)

    def forget(self, replica: ReplicaId) -> None:
        """The replica is gone. What it held is dropped as by `clear`."""
        self.clear(replica)

    def sweep(self, chains: int) -> bool:
        """Free up to so many chains of cleared replicas; whether there are more."""
        touched: dict[Node, None] = {}
        while self._cleared and chains > 0:
            holder = self._cleared[-1]
            if holder.chains:
                chain = next(reversed(holder.chains.values()))
                while chain.children is not None:
                    chain = next(iter(next(iter(chain.children.values()))))
                cut(chain, 0, touched)
            more = holder.table.shrink(_SWEEP_BUCKETS_PER_CHAIN)
            chains -= 1
            if not holder.chains and not more:
                self._cleared.pop()
        self._radix.prune(touched)
        return bool(self._cleared)

    def keep_within(self, bytes_max: int, live: Container[ReplicaId], samples: int = 8) -> None:
        """Forget some of what was used longest ago if the tree is too large (step 9).

        Call it now and then in any case: what is used between two calls is taken as equally old.

        Args:
            live: What others hold goes first.
            samples: How much is done at most in this call: some hundred microseconds each.
        """
        self._radix.moment += 1
        while samples > 0 and self.bytes_resident > bytes_max:
            samples -= 1
            if self._cleared:
                self.sweep(_SWEEP_CHAINS_PER_SAMPLE)
                continue
            known = [one for one in self._holders.values() if one.chains or one.predictions]
            holders = [one for one in known if one.replica not in live] or known
            if not holders:
                return
            self.forgotten_blocks += forget_some(holders, self._radix)

    def predict(self, namespace: Namespace, prompt: bytes, replica: ReplicaId) -> Prediction:
        """Believe that the replica will hold `prompt`, until dropped or overtaken (step 8)."""
        return predict(self._radix, self._holder(replica), namespace, prompt)

    def drop(self, prediction: Prediction) -> None:
        """Believe it no longer. Dropping twice is fine."""
        drop(self._radix, prediction)

    def _holder(self, replica: ReplicaId) -> Holder:
        holder = self._holders.get(replica)
        if holder is None:
            holder = self._holders[replica] = Holder(replica)
        return holder

    def check(self) -> None:
        """Assert what must always hold. Slow: it looks at everything."""
        check_tree(self._radix, [*self._holders.values(), *self._cleared])


def _match_within(
    node: Node,
    prompt: bytes,
    position: int,
    best: dict[Holder, Confirmed],
    predicted: dict[Holder, int],
) -> None:
    """Step 2: the prompt ends or differs somewhere within `node`'s edge."""
    end = min(position + common_prefix(node.edge, prompt, position), len(prompt) - 1)
    if end <= position:
        return
    for holder in node.last:
        last = node.last_before(holder, end)
        if last is not None:
            best[holder] = last
    for holder in node.predicted:
        predicted[holder] = end
