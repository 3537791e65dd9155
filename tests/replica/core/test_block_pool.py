"""The block pool's rules, one by one."""

from replica.core.block_hash import BlockKey, block_keys, tokens_of
from replica.core.block_pool import BlockPool
from tests.replica.core.driving import EventMirror


def block_key(
    parent_hash: int | None, token_ids: list[int], extra_keys: tuple[str, ...] | None
) -> BlockKey:
    (key,) = block_keys(parent_hash, token_ids, len(token_ids), extra_keys)
    return key


def chain(*blocks: list[int]) -> list[BlockKey]:
    keys: list[BlockKey] = []
    for tokens in blocks:
        keys.append(block_key(keys[-1].hash if keys else None, tokens, None))
    return keys


def fill(pool: BlockPool, keys: list[BlockKey]) -> list[int]:
    blocks = pool.allocate(len(keys))
    for index, key in enumerate(keys):
        stored = pool.store(blocks[index], key)
        assert stored is not None
        blocks[index] = stored
    pool.check()
    return blocks


def test_names_are_stable_across_processes_and_versions() -> None:
    first, second = chain([1, 2], [3, 4])
    salted = block_key(None, [1, 2], ("tenant-a",))
    assert tokens_of(second) == [3, 4]
    assert (first.hash, second.hash, salted.hash) == (
        4509537160516232654,
        12430008728489784032,
        2012267376253533199,
    )


def test_a_chain_is_evicted_tail_first_and_the_least_recently_used_chain_first() -> None:
    pool = BlockPool(4, 2)
    old, new = chain([1, 1], [2, 2]), chain([3, 3], [4, 4])
    old_blocks, new_blocks = fill(pool, old), fill(pool, new)
    pool.release(old_blocks)
    pool.release(new_blocks)
    pool.acquire(old_blocks)
    pool.release(old_blocks)
    pool.take_events()
    mirror = []
    for _ in range(4):
        pool.allocate(1)
        pool.check()
        mirror += [name for event in pool.take_events() for name in event.block_hashes]  # type: ignore[union-attr]
    assert mirror == [new[1].hash, new[0].hash, old[1].hash, old[0].hash]


def test_equal_content_ends_up_in_one_block() -> None:
    pool = BlockPool(4, 2)
    keys = chain([1, 1], [2, 2])
    first = fill(pool, keys)
    second = fill(pool, keys)
    assert first == second
    assert pool.held_blocks == 2
    assert [pool.references(block) for block in first] == [2, 2]
    assert sum(len(event.block_hashes) for event in pool.take_events()) == 2  # type: ignore[union-attr]


def test_a_hash_collision_is_a_miss() -> None:
    pool = BlockPool(4, 2)
    real = block_key(None, [1, 1], None)
    forged = BlockKey(real.hash, None, block_key(None, [9, 9], None).token_bytes)
    fill(pool, [real])
    assert pool.find(forged) is None
    (block,) = pool.allocate(1)
    assert pool.store(block, forged) is None
    pool.check()
    pool.release([block])
    pool.check()
    assert pool.held_blocks == 1


def test_a_snapshot_is_what_the_events_add_up_to() -> None:
    pool = BlockPool(6, 2)
    live, late = EventMirror(), EventMirror()
    fork = chain([1, 1], [2, 2], [3, 3])
    pool.release(fill(pool, fork))
    pool.release(fill(pool, [*fork[:1], block_key(fork[0].hash, [5, 5], None)]))
    pool.release(pool.allocate(3))  # evicts one
    live.apply(pool.take_events())
    late.apply(pool.snapshot())
    assert live.blocks == late.blocks
    assert len(live.blocks) == 3


def test_one_event_holds_a_whole_chain() -> None:
    pool = BlockPool(6, 2)
    fill(pool, chain([1, 1], [2, 2], [3, 3]))
    (event,) = pool.take_events()
    assert event.token_ids == [1, 1, 2, 2, 3, 3]  # type: ignore[union-attr]
    assert event.medium == "GPU"  # type: ignore[union-attr]
    assert len(pool.snapshot()) == 1


def test_a_snapshot_has_one_event_a_chain_however_its_blocks_were_stored() -> None:
    pool = BlockPool(9, 2)
    one, two = chain([1, 1], [2, 2], [3, 3]), chain([7, 7], [8, 8])
    fork = block_key(one[0].hash, [5, 5], None)
    below = block_key(fork.hash, [6, 6], None)
    salted = block_key(None, [1, 1], ("salt",))
    salted_below = block_key(salted.hash, [9, 9], None)
    for key in (one[0], two[0], one[1], fork, salted, two[1], one[2], salted_below, below):
        pool.store(pool.allocate(1)[0], key)
    events = pool.snapshot()
    assert [(event.parent_block_hash, event.token_ids, event.extra_keys) for event in events] == [
        (None, [1, 1, 2, 2, 3, 3], None),
        (None, [7, 7, 8, 8], None),
        (one[0].hash, [5, 5, 6, 6], None),
        (None, [1, 1, 9, 9], [["salt"], None]),
    ]
    live, late = EventMirror(), EventMirror()
    live.apply(pool.take_events())
    late.apply(events)
    assert live.blocks == late.blocks
