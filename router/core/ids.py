"""What replicas and caches are called inside the router."""

from collections.abc import Hashable

ReplicaId = str

# What beside a prompt's text tells its blocks from others: see `namespace_of`.
Namespace = tuple[Hashable, ...]


def namespace_of(adapter: str | None, salt: str | None) -> Namespace:
    """The cache in which only requests with this adapter and this salt find anything."""
    return (adapter, salt) if adapter or salt else ()
