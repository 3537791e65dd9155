"""The ways to choose what to evict, by the names that configurations give them."""

from collections.abc import Callable, Mapping
from typing import Literal

from replica.core.eviction import Eviction, LeastRecentlyUsed
from replica.core.reuse_aware import ReuseAware

EvictionName = Literal["reuse", "lru"]

EVICTIONS: Mapping[EvictionName, Callable[[int], Eviction]] = {
    "reuse": ReuseAware,
    "lru": LeastRecentlyUsed,
}
"""Each makes an empty one for so many blocks."""
