"""How large caches are: derived from what a workload could find in them, not from a GPU's memory.

One pool for the whole fleet that forgets what was used longest ago needs, to find a block again,
room for all that was used in between: the block's reuse distance (Mattson et al. 1970). So the
distances of all blocks that are ever used again say which size finds which share of them.
Each size is at least 1.5 times the one before, so that they differ where little is reused.
"""

from collections.abc import Sequence
from hashlib import blake2b

from loadtests.sim.request import SimRequest

SIZES = {"tight": 0.5, "medium": 0.8, "ample": 0.99}
"""Share of what an infinite cache would find that one pool of the fleet's size finds."""

_BLOCK_TOKENS = 128  # fine enough for sizes
_LARGEST_TIMES = 2
_STEP_MIN = 1.5
_TOKEN_S = 0.03  # of an answer under load: how long requests are in flight


def cache_blocks(
    requests: Sequence[SimRequest], *, requests_per_s: float, replicas: int, block_size: int
) -> dict[str, int]:
    """Blocks of each replica, by the size's name.

    At least what two of the largest requests take, and what is in flight at this rate.
    """
    distances = reuse_distances(requests)
    count = len(requests)
    largest = max(len(one.prompt) + one.output_tokens for one in requests)
    tokens_mean = sum(len(one.prompt) + one.output_tokens for one in requests) / count
    answer_s = sum(one.output_tokens for one in requests) / count * _TOKEN_S
    in_flight = requests_per_s * answer_s * tokens_mean
    sizes: dict[str, int] = {}
    least = max(_LARGEST_TIMES * largest, in_flight / replicas)
    for name, share in SIZES.items():
        found = distances[int(share * (len(distances) - 1))] if distances else 0
        tokens = max(least, found / replicas)
        sizes[name] = -int(-tokens // block_size)
        least = tokens * _STEP_MIN
    return sizes


def reuse_distances(requests: Sequence[SimRequest]) -> list[int]:
    """For each block that is used again: different tokens used since, itself included; ascending.

    Only blocks of leading prefixes that came before count as used again.
    """
    names = [_names(one) for one in requests]
    latest = _Marks(sum(map(len, names)))
    used_at: dict[bytes, int] = {}
    distances, now = [], 0
    for prompt in names:
        leading = True
        for name in prompt:
            before = used_at.get(name)
            leading = leading and before is not None
            if before is not None:
                if leading:
                    distances.append(latest.above(before) * _BLOCK_TOKENS)
                latest.add(before, -1)
            latest.add(now, 1)
            used_at[name] = now
            now += 1
    distances.sort()
    return distances


def _names(request: SimRequest) -> list[bytes]:
    """Of every prefix that ends with a whole block."""
    data, stride = request.prompt.tobytes(), _BLOCK_TOKENS * request.prompt.itemsize
    hasher, names = blake2b(digest_size=8), []
    for start in range(0, len(data) - stride + 1, stride):
        hasher.update(data[start : start + stride])
        names.append(hasher.digest())
    return names


class _Marks:
    """Marks at places, and how many are at or above one: a binary indexed tree (Fenwick 1994)."""

    def __init__(self, places: int) -> None:
        self._sums = [0] * (places + 1)
        self._total = 0

    def add(self, place: int, count: int) -> None:
        self._total += count
        at = place + 1
        while at < len(self._sums):
            self._sums[at] += count
            at += at & -at

    def above(self, place: int) -> int:
        below, at = 0, place
        while at:
            below += self._sums[at]
            at -= at & -at
        return self._total - below
