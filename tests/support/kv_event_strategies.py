"""Hypothesis strategies for KV events, batches of them, and arrays that older engines write."""

from typing import Any

from hypothesis import strategies as st

from protocol.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
    KvEvent,
)

U64 = 2**64 - 1

hashes = st.integers(0, U64) | st.binary(min_size=1, max_size=32)
names = st.none() | st.text(max_size=5)


@st.composite
def stored_events(draw: st.DrawFn) -> BlockStored:
    block_hashes = draw(st.lists(hashes, max_size=3))
    size = draw(st.integers(1, 4))
    count = len(block_hashes)
    return BlockStored(
        block_hashes=block_hashes,
        parent_block_hash=draw(st.none() | hashes),
        token_ids=draw(st.lists(st.integers(0, 2**32), min_size=count * size,
                                max_size=count * size)),
        block_size=size,
        lora_id=draw(st.none() | st.integers(0, 9)),
        medium=draw(names),
        lora_name=draw(names),
        extra_keys=draw(st.none() | st.lists(st.none() | st.lists(st.text(max_size=3), max_size=2),
                                             min_size=count, max_size=count)),
        group_idx=draw(st.none() | st.integers(0, 3)),
        kv_cache_spec_kind=draw(names),
        locality=draw(names),
        cache_salt=draw(names),
    )  # fmt: skip


removed_events = st.builds(
    BlockRemoved,
    block_hashes=st.lists(hashes, max_size=3),
    medium=names,
    group_idx=st.none() | st.integers(0, 3),
)
events = stored_events() | removed_events | st.just(AllBlocksCleared())
batches = st.builds(
    EventBatch,
    ts=st.floats(0, 1e12),
    events=st.lists(events, max_size=4),
    data_parallel_rank=st.none() | st.integers(0, 7),
)


def array_of(event: KvEvent) -> list[Any]:
    """As vLLM to 0.23 and SGLang write it."""
    if isinstance(event, BlockStored):
        return ["BlockStored", event.block_hashes, event.parent_block_hash, event.token_ids,
                event.block_size, event.lora_id, event.medium, event.lora_name, event.extra_keys,
                event.group_idx, event.kv_cache_spec_kind, None, event.locality]  # fmt: skip
    if isinstance(event, BlockRemoved):
        return ["BlockRemoved", event.block_hashes, event.medium, event.group_idx, event.locality]
    return ["AllBlocksCleared"]
