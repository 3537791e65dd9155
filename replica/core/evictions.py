"""The ways to choose what to evict, by the names that configurations give them."""

from collections.abc import Callable, Mapping
from typing import Literal

from replica.core.eviction import Eviction, LeastRecentlyUsed
from replica.core.reuse_aware import ReuseAware

EvictionName = Literal["lru", "reuse"]

EVICTIONS: Mapping[EvictionName, Callable[[int], Eviction]] = {
    "lru": LeastRecentlyUsed,
    "reuse": ReuseAware,
}
"""Each makes an empty one for so many blocks."""
