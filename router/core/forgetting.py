"""What the prefix tree forgets when it has grown too large: what was used longest ago, about.

Exact LRU would cost every match a step per chain on its way. Instead each node remembers the moment
it was last matched, and of a sample of chains and predictions the oldest quarter goes: a chain's
blocks in the node where it ends, so that a conversation is forgotten from its end.

Source: approximated LRU by sampling, as in Redis (its documentation of `maxmemory-samples`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import islice

from router.core.chain_edits import pop
from router.core.chains import Chain, Holder
from router.core.predicted_paths import drop
from router.core.radix import Node, Radix

_SAMPLE = 64
_SHARE = 4
# What a block and a node take up beside the text, measured.
BLOCK_BYTES = 36
NODE_BYTES = 1200


def forget_some(holders: Sequence[Holder], radix: Radix) -> int:
    """Of a sample of what these replicas hold or are predicted to, forget the oldest quarter.

    Returns:
        How many blocks were forgotten.
    """
    candidates = _sample(holders)
    candidates.sort(key=lambda one: one.used if isinstance(one, Node) else one.node.used)
    forgotten = 0
    touched: dict[Node, None] = {}
    for one in candidates[: max(1, len(candidates) // _SHARE)]:
        if isinstance(one, Node):
            for holder in holders:
                for prediction in list(holder.predictions.get(one, ())):
                    drop(radix, prediction)
        elif len(one):  # ghosts above another may have taken it along
            keep = bisect_right(one.ends, one.node.start)
            forgotten += len(one) - keep
            pop(one, keep, touched)
    radix.prune(touched)
    return forgotten


def _sample(holders: Sequence[Holder]) -> list[Chain | Node]:
    """The next chains in turn without others below them, and nodes where a prediction ends."""
    each = max(1, _SAMPLE // len(holders))
    candidates: list[Chain | Node] = []
    for holder in holders:
        for chain in list(islice(holder.chains.values(), each)):
            # To the end of the line: others have their turn next time.
            holder.chains[chain.number] = holder.chains.pop(chain.number)
            if chain.children is None:
                candidates.append(chain)
        candidates += islice(holder.predictions, each)
    return candidates
