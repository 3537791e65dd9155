"""Data-parallel ranks: one engine with several caches, each with events of its own.

An engine with N ranks publishes N streams: rank r at the port of its configuration plus r, with
sequence numbers of its own. Equal prompts have equal hashes in all of them. To the index every rank
is a cache with a name of its own; rank 0 has the replica's, so that a replica with one cache is
just that.

Source: `offset_endpoint_port` in vllm/distributed/kv_events.py and in SGLang's copy of it (which
refuse any address but tcp for further ranks that another process could reach).
"""

# No configured id holds a NUL: they are printable.
_SEPARATOR = "\x00dp"


def rank_cache_id(replica: str, rank: int) -> str:
    """What the index calls the cache of this rank."""
    assert rank >= 0
    assert _SEPARATOR not in replica
    return f"{replica}{_SEPARATOR}{rank}" if rank else replica


def replica_of(cache_id: str) -> str:
    """The replica whose cache this is."""
    return cache_id.partition(_SEPARATOR)[0]


def rank_endpoint(endpoint: str, rank: int) -> str:
    """Where rank `rank` of an engine is that is configured with `endpoint`, tcp://host:port."""
    if rank == 0:
        return endpoint
    base, colon, port = endpoint.rpartition(":")
    assert endpoint.startswith("tcp://"), "the configuration allows further ranks only with tcp"
    return f"{base}{colon}{int(port) + rank}"
