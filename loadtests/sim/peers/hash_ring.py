"""A consistent hash ring: keys keep their replica while others come and go.

Source: Karger et al. 1997, "Consistent hashing and random trees"; points a replica as
vllm-project/router has them.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from hashlib import blake2b

# vllm-project/router README: "160 virtual nodes".
POINTS = 160


class HashRing:
    def __init__(self, ids: Sequence[str], points: int = POINTS) -> None:
        placed = sorted(
            (_place(f"{id}#{point}".encode()), index)
            for index, id in enumerate(ids)
            for point in range(points)
        )
        self._places = [place for place, _ in placed]
        self._owners = [owner for _, owner in placed]

    def owner(self, key: bytes) -> int:
        """Index of the id that owns `key`."""
        return next(self.owners(key))

    def owners(self, key: bytes) -> Iterator[int]:
        """The owner of `key`, then who would own it if those before were gone."""
        start = bisect_right(self._places, _place(key))
        seen: set[int] = set()
        for step in range(len(self._owners)):
            owner = self._owners[(start + step) % len(self._owners)]
            if owner not in seen:
                seen.add(owner)
                yield owner


def _place(key: bytes) -> int:
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "big")
