"""What a snapshot of hashes does to what events told."""

from protocol.kv_events import AllBlocksCleared, BlockRemoved, BlockStored
from router.core.held_hashes import HeldHashes
from tests.support.event_publisher import stored


def on(medium: str, *hashes: int) -> BlockStored:
    return BlockStored(
        block_hashes=list(hashes), parent_block_hash=None, token_ids=[], block_size=0, medium=medium
    )


def test_what_a_snapshot_does_not_name_goes_from_every_medium() -> None:
    held = HeldHashes()
    held.apply([stored(1, b"Hell"), stored(2, b"o wo", 1), on("CPU_PINNED", 2, 3)])
    held.apply([BlockRemoved(block_hashes=[7]), BlockRemoved(block_hashes=[1], medium="DISK")])
    assert held.unknown({1, 2, 3, 4, 5}) == 2
    gone = sorted((one.medium or "", one.block_hashes) for one in held.retain({1, 4}))
    assert [(medium, sorted(map(str, hashes))) for medium, hashes in gone] == [
        ("", ["2"]),
        ("CPU_PINNED", ["2", "3"]),
    ]
    assert list(held.retain({1, 4})) == []
    assert held.unknown({1, 2}) == 1


def test_what_is_stored_after_a_hole_though_it_is_held_is_counted_once() -> None:
    held = HeldHashes()
    held.apply([stored(1, b"Hell"), stored(2, b"o wo", 1)])
    again = [stored(2, b"o wo", 1), stored(3, b"rld!", 2), stored(3, b"rld!", 2)]
    assert held.apply_after_hole(again) == [
        BlockRemoved(block_hashes=[2]), again[0],
        again[1],
        BlockRemoved(block_hashes=[3]), again[2],
    ]  # fmt: skip
    assert held.unknown({1, 2, 3}) == 0


def test_what_events_took_away_is_not_removed_again() -> None:
    held = HeldHashes()
    held.apply([stored(1, b"Hell"), BlockRemoved(block_hashes=[1]), stored(2, b"worl")])
    assert [one.block_hashes for one in held.retain(set())] == [[2]]
    held.apply([stored(3, b"abcd"), AllBlocksCleared()])
    assert list(held.retain(set())) == []
    held.apply([stored(4, b"efgh")])
    held.clear()
    assert list(held.retain(set())) == []
