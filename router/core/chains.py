"""What one replica holds, chain by chain: each block the child of the one before it.

    store 1 2 3 below nothing        chain A: [1 2 3]
    store 4 5 below 3                chain A: [1 2 3 4 5]
    store 6 7 below 2                chain A: [1 2 3 4 5]
                                               └─ chain B: [6 7], parent (A, 1)

Of a block only its hash and the byte where its text ends are kept, 12 bytes in two arrays: the
tokens before it follow from its index, since all blocks of a chain have one size.

A block the replica removed while it holds one below stays as a *ghost*, no copies: what is below
is cut off until the ghost is stored again.

    rooted[tier]: how many leading blocks of the chain have a copy on that tier or a faster one,
                  and so has every block before them up to the start of the prompt
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from router.core.block_table import BlockTable
from router.core.ids import ReplicaId

if TYPE_CHECKING:
    from router.core.radix import Node, Root


class Tier(IntEnum):
    """Where a block's KV lies, fastest first."""

    DEVICE = 0
    HOST = 1
    DISK = 2


# Copies of a block on each tier.
Copies = tuple[int, int, int]
HELD_ONCE: Copies = (1, 0, 0)
GHOST: Copies = (0, 0, 0)

# A place is a chain's number and an index in it, in 64 bits.
_INDEX_BITS = 24
CHAIN_BLOCKS_MAX = 1 << _INDEX_BITS
# Up to so many odd blocks it is cheaper to look at all of them than along the chain.
_FEW_ODD_BLOCKS = 32


class Confirmed(NamedTuple):
    """The best unbroken run of whole blocks from the start of a prompt.

    Attributes:
        tokens: In these blocks, on whatever tier.
        end: The byte where they end.
        host_tokens, disk_tokens: Of `tokens`, those from the first block on that the device does
            not have, and from the first on that neither device nor host has. What lies behind it
            on a faster tier counts with it.
    """

    tokens: int
    end: int
    host_tokens: int = 0
    disk_tokens: int = 0


class Chain:
    """Blocks of one replica, all of one size, each the child of the one before it.

    Attributes:
        number: Its name in its holder's table of places.
        root: The namespace it belongs to.
        parent, parent_index: The block before the first one; None at the start of a prompt.
        start_tokens: Tokens before the first block.
        hashes, ends: Of each block its hash, and the byte of the text where it ends.
        node: The radix node in whose edge the last block ends.
        odd: Copies of the blocks that have not exactly one, on the device.
        children: Chains that hang below a block, by the block's index.
        rooted: See above, for each tier.
    """

    __slots__ = (
        "block_size",
        "children",
        "ends",
        "hashes",
        "holder",
        "node",
        "number",
        "odd",
        "parent",
        "parent_index",
        "root",
        "rooted",
        "start_tokens",
    )

    def __init__(
        self, holder: Holder, root: Root, parent: Chain | None, parent_index: int, block_size: int
    ) -> None:
        self.holder = holder
        self.number = holder.chain_numbers
        holder.chain_numbers += 1
        holder.chains[self.number] = self
        self.root = root
        self.node: Node = root
        self.parent = parent
        self.parent_index = parent_index
        self.block_size = block_size
        self.start_tokens = 0
        self.hashes = array("Q")
        self.ends = array("I")
        self.odd: dict[int, Copies] | None = None
        self.children: dict[int, dict[Chain, None]] | None = None
        self.rooted: tuple[int, int, int] = (0, 0, 0)
        if parent is not None:
            self.start_tokens = parent.tokens(parent_index + 1)
            if parent.children is None:
                parent.children = {}
            parent.children.setdefault(parent_index, {})[self] = None

    def __len__(self) -> int:
        return len(self.ends)

    def __repr__(self) -> str:
        below = "" if self.parent is None else f" below {self.parent.number}[{self.parent_index}]"
        return f"Chain({self.holder.replica} {self.number}: {len(self)} blocks{below})"

    def tokens(self, count: int) -> int:
        """Tokens up to and with the first `count` blocks."""
        return self.start_tokens + count * self.block_size

    def copies(self, index: int) -> Copies:
        return HELD_ONCE if self.odd is None else self.odd.get(index, HELD_ONCE)

    def set_copies(self, index: int, copies: Copies) -> None:
        if copies != HELD_ONCE:
            if self.odd is None:
                self.odd = {}
            self.odd[index] = copies
        elif self.odd is not None:
            self.odd.pop(index, None)
            self.odd = self.odd or None

    def has_child(self, index: int) -> bool:
        """Whether another chain hangs below this block."""
        return self.children is not None and index in self.children

    def is_open(self, tier: Tier) -> bool:
        """Whether every block before the chain has a copy on `tier` or a faster one."""
        return self.parent is None or self.parent.rooted[tier] > self.parent_index

    def first_hole(self, tier: Tier, start: int) -> int:
        """The first block from `start` on without a copy on `tier` or a faster one."""
        odd, count = self.odd, len(self.ends)
        if odd is None:
            return count
        if len(odd) <= _FEW_ODD_BLOCKS:
            holes = (
                at for at, copies in odd.items() if at >= start and not any(copies[: tier + 1])
            )
            return min(holes, default=count)
        while start < count and any(odd.get(start, HELD_ONCE)[: tier + 1]):
            start += 1
        return start

    def node_of(self, index: int) -> Node:
        """The radix node in whose edge a block's text ends."""
        *_, node = self.node.up_to(self.ends[index])
        return node

    def last_before(self, position: int) -> Confirmed | None:
        """The rooted blocks that end at or before `position`."""
        ends, rooted = self.ends, self.rooted
        count = bisect_right(ends, position)
        if count > rooted[Tier.DISK]:
            count = rooted[Tier.DISK]
        if not count:
            return None
        tokens = self.start_tokens + count * self.block_size
        if count <= rooted[Tier.DEVICE]:
            return Confirmed(tokens, ends[count - 1])
        on_device, on_host = (
            self._rooted_tokens(Tier.DEVICE, count),
            self._rooted_tokens(Tier.HOST, count),
        )
        return Confirmed(tokens, ends[count - 1], on_host - on_device, tokens - on_host)

    def _rooted_tokens(self, tier: Tier, count: int) -> int:
        """Tokens of the unbroken run on `tier` or faster, as far as our first `count` blocks."""
        chain = self
        while True:
            rooted = min(chain.rooted[tier], count)
            if rooted:
                return chain.tokens(rooted)
            if chain.parent is None:
                return 0
            count = chain.parent_index + 1
            chain = chain.parent


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


def place_of(chain_number: int, index: int) -> int:
    """What a holder's table says of a block."""
    return chain_number << _INDEX_BITS | index


class Holder:
    """All one replica holds, from its first event until it is cleared.

    A cleared replica gets a new holder; the old one is no longer `alive` and its chains are swept
    out of the tree little by little, so that clearing never takes long.

    Attributes:
        table: Where each block is, ghosts too.
        chains: By number. `chain_numbers` counts those there ever were.
        predictions: Live ones, by the node they end at.
        blocks, tokens: Held on each tier, copies counted.
    """

    __slots__ = (
        "alive",
        "blocks",
        "chain_numbers",
        "chains",
        "predictions",
        "replica",
        "table",
        "tokens",
    )

    def __init__(self, replica: ReplicaId) -> None:
        self.replica = replica
        self.alive = True
        self.table = BlockTable()
        self.chains: dict[int, Chain] = {}
        self.chain_numbers = 0
        self.predictions: dict[Node, list[Prediction]] = {}
        self.blocks = [0, 0, 0]
        self.tokens = [0, 0, 0]

    def find(self, hash: int) -> tuple[Chain, int] | None:
        """The chain and index of a block, a ghost perhaps."""
        place = self.table.place(hash)
        if place is None:
            return None
        return self.chains[place >> _INDEX_BITS], place & (CHAIN_BLOCKS_MAX - 1)

    def count(self, chain: Chain, tier: Tier, blocks: int) -> None:
        """So many blocks of `chain` more on `tier`, or fewer if negative."""
        self.blocks[tier] += blocks
        self.tokens[tier] += blocks * chain.block_size
