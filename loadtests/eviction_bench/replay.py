"""Chains of blocks through one cache, one request after the other: what is found, and the optimum.

Nothing takes time here and nothing runs side by side: what differs between two evictions is only
what they keep. The simulator says what that is worth.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from loadtests.sim.request import SimRequest
from replica.core.block_hash import block_keys
from replica.core.eviction import Eviction


@dataclass(frozen=True, slots=True)
class Chain:
    """What one request leaves in a cache.

    Attributes:
        names: Of its blocks, from the first on: those of the prompt, then of the answer.
        prompt_blocks: How many of them can be found.
    """

    names: Sequence[int]
    prompt_blocks: int


def chains(requests: Iterable[SimRequest], block_tokens: int) -> list[Chain]:
    """Whole blocks of prompts, and of answers where a later prompt may have them."""
    found = []
    for request in requests:
        tokens = request.prompt if request.answer is None else request.prompt + request.answer
        whole = tokens[: len(tokens) // block_tokens * block_tokens]
        keys = block_keys(None, whole, block_tokens, None)
        found.append(Chain([key.hash for key in keys], len(request.prompt) // block_tokens))
    return found


def ideal_hits(load: Iterable[Chain]) -> int:
    """Blocks of prompts found by a cache that never evicts."""
    seen: set[int] = set()
    hits = 0
    for chain in load:
        hits += sum(name in seen for name in chain.names[: chain.prompt_blocks])
        seen.update(chain.names)
    return hits


def replay(load: Iterable[Chain], cache_blocks: int, eviction: Eviction) -> int:
    """Blocks of prompts found by a cache that evicts so.

    Args:
        eviction: Empty, for `cache_blocks`, which hold the longest chain.
    """
    empty = list(range(cache_blocks))
    by_name: dict[int, int] = {}
    names = [0] * cache_blocks
    hits = 0
    for chain in load:
        table: list[int] = []
        for name in chain.names:
            block = by_name.get(name)
            if block is None:
                break
            eviction.reused(block)
            eviction.remove(block)
            table.append(block)
        hits += min(len(table), chain.prompt_blocks)
        for name in chain.names[len(table) :]:
            if empty:
                block = empty.pop()
            else:
                block = eviction.pop()
                del by_name[names[block]]
            by_name[name], names[block] = block, name
            eviction.stored(block, name, table[-1] if table else None, False)
            table.append(block)
        for block in reversed(table):
            eviction.add(block)
    return hits


def optimal_hits(load: Sequence[Chain], cache_blocks: int) -> int:
    """As `replay`, of a cache that knows the future: the block used last goes first, tail first.

    Source: Belady 1966, doi:10.1147/sj.52.0078. A block is used again no later than those below it,
    so his order keeps chains whole.
    """
    never = len(load)
    next_use: dict[int, int] = {}
    uses: list[list[int]] = []
    for number in range(len(load) - 1, -1, -1):
        uses.append([next_use.get(name, never) for name in load[number].names])
        next_use.update(dict.fromkeys(load[number].names, number))
    cached: dict[int, int] = {}  # when it is used next
    order: list[tuple[int, int, int]] = []  # (-next use, -position, name), some of them outdated
    hits = 0
    for chain in load:
        following = uses.pop()
        found = 0
        while found < len(chain.names) and chain.names[found] in cached:
            found += 1
        hits += min(found, chain.prompt_blocks)
        for name in chain.names[:found]:
            del cached[name]  # held
        while len(cached) + len(chain.names) > cache_blocks:
            use, _, name = heapq.heappop(order)
            if cached.get(name) == -use:
                del cached[name]
        for position, (name, use) in enumerate(zip(chain.names, following, strict=True)):
            cached[name] = use
            heapq.heappush(order, (-use, -position, name))
    return hits


def blocks_for(load: Sequence[Chain], hits: float, make: Callable[[int], Eviction]) -> int:
    """The smallest cache, within 3 %, in which an eviction finds so many blocks."""
    low = max(len(chain.names) for chain in load)
    high = low + sum(chain.prompt_blocks for chain in load)
    while high > 1.03 * low + 1:
        middle = round((low * high) ** 0.5)
        if replay(load, middle, make(middle)) < hits:
            low = middle
        else:
            high = middle
    return high
