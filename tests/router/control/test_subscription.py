"""A subscription follows a real publisher through whatever goes wrong."""

import asyncio

import pytest

from protocol.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    EventBatch,
    encode_batch,
    encode_sequence_number,
)
from tests.support.event_publisher import EventPublisher, following, stored


async def conversation(publisher: EventPublisher, *, lost: bool = False) -> None:
    """Two chains that share a block."""
    await publisher.publish(stored(1, b"Hell"), stored(2, b"o wo", parent=1), lost=lost)
    await publisher.publish(stored(3, b"rld!", parent=2), lost=lost)
    await publisher.publish(stored(4, b"man?", parent=2), lost=lost)


async def test_a_snapshot_then_live_events_make_the_tree_equal_the_publishers_truth() -> None:
    async with following(wait=False) as (publisher, follower):
        publisher.snapshot_status = 503
        await conversation(publisher, lost=True)
        publisher.snapshot_status = 200
        await publisher.subscribed()
        await follower.caught_up(publisher)
        await publisher.publish(stored(5, b" Bye", parent=3), BlockRemoved(block_hashes=[4]))
        await follower.caught_up(publisher)
        assert (follower.status.gaps, follower.status.malformed) == (0, {})
        assert follower.status.epoch == "epoch-0"
        assert follower.status.block_size == 4


async def test_events_between_snapshot_and_live_are_neither_lost_nor_doubled() -> None:
    async with following(wait=False) as (publisher, follower):
        await publisher.subscribed()
        # The snapshot has some of these batches, the live stream all of them, in any interleaving.
        for number in range(50):
            await publisher.publish(stored(100 + number, b"%04d" % number))
            await asyncio.sleep(0)
        await follower.caught_up(publisher)
        assert follower.status.gaps == 0


async def test_a_gap_is_filled_from_the_replay_socket() -> None:
    async with following() as (publisher, follower):
        await publisher.publish(stored(1, b"Hell"))
        await follower.caught_up(publisher)
        await publisher.publish(stored(2, b"o wo", parent=1), lost=True)
        await publisher.publish(BlockRemoved(block_hashes=[2]), stored(3, b"!!!!"), lost=True)
        await publisher.publish(stored(4, b"rld!", parent=1))
        await follower.caught_up(publisher)
        assert publisher.replays_asked == [1]
        assert (follower.status.gaps, follower.status.resyncs) == (1, 1)


async def test_a_replay_that_ends_before_the_message_in_hand_is_enough() -> None:
    async with following() as (publisher, follower):
        await publisher.publish(stored(1, b"Hell"))
        await follower.caught_up(publisher)
        await publisher.publish(stored(2, b"o wo", parent=1), lost=True)
        await publisher.publish(stored(3, b"rld!", parent=2), lost=True)
        seq, payload = publisher.buffer.pop()
        await publisher.send(encode_sequence_number(seq), payload)
        await follower.caught_up(publisher)
        assert follower.status.resyncs == 1


async def test_a_gap_that_the_replay_no_longer_has_costs_a_snapshot() -> None:
    async with following() as (publisher, follower):
        await publisher.publish(stored(1, b"Hell"))
        await follower.caught_up(publisher)
        await publisher.publish(stored(2, b"o wo", parent=1), lost=True)
        publisher.buffer.clear()
        await publisher.publish(stored(3, b"rld!", parent=2))
        await follower.caught_up(publisher)
        assert (follower.status.gaps, follower.status.resyncs) == (1, 2)


async def test_a_restarted_engine_is_known_by_numbers_that_go_back() -> None:
    async with following() as (publisher, follower):
        await conversation(publisher)
        await follower.caught_up(publisher)
        publisher.restart()
        await publisher.publish(stored(9, b"anew"))
        await follower.until(lambda: follower.status.epoch == "epoch-0+")
        await follower.caught_up(publisher)


async def test_a_lost_connection_lowers_trust_and_its_return_resynchronises() -> None:
    async with following() as (publisher, follower):
        await conversation(publisher)
        await follower.caught_up(publisher)
        publisher.unbind()
        await follower.until(lambda: not follower.status.connected)
        assert not follower.status.synced
        follower.agrees_with(publisher.held.values())  # what it held it mostly holds still
        publisher.restart()
        publisher.bind()
        await publisher.subscribed()
        await publisher.publish(stored(9, b"anew"))
        await follower.caught_up(publisher)
        assert follower.status.epoch == "epoch-0+"


async def test_a_replica_that_loads_its_model_is_asked_again_until_it_answers() -> None:
    async with following(snapshot_status=503) as (publisher, follower):
        await publisher.until_asked(2)
        assert not follower.status.synced
        await conversation(publisher)
        publisher.snapshot_status = 200
        await follower.caught_up(publisher)


async def test_events_while_a_snapshot_is_refused_do_not_make_us_ask_more_often() -> None:
    async with following(snapshot_status=503) as (publisher, follower):
        await publisher.until_asked(1)
        for number in range(300):
            await publisher.publish(stored(number, b"%04d" % number))
            await asyncio.sleep(0.001)
        assert publisher.snapshots_asked < 10
        publisher.snapshot_status = 200
        await follower.caught_up(publisher)


async def test_a_snapshot_that_is_none_is_counted_and_asked_for_again() -> None:
    async with following(wait=False) as (publisher, follower):
        publisher.bad_snapshots = [b"\xc1", b"\x80"]
        await publisher.subscribed()
        await publisher.until_asked(3)
        await publisher.publish(stored(1, b"Hell"))
        await follower.caught_up(publisher)
        assert follower.status.malformed.total() == 2


async def test_without_a_snapshot_endpoint_the_replay_tells_all() -> None:
    async with following(snapshot_status=404, wait=False) as (publisher, follower):
        await conversation(publisher, lost=True)
        await publisher.subscribed()
        await follower.caught_up(publisher)
        await publisher.publish(stored(5, b" Bye", parent=3))
        await follower.caught_up(publisher)
        assert publisher.replays_asked == [0]
        assert follower.status.epoch is None


async def test_a_replay_buffer_that_starts_late_is_used_for_what_it_has() -> None:
    async with following(snapshot_status=404, wait=False) as (publisher, follower):
        await publisher.publish(stored(1, b"lost"), lost=True)
        await publisher.publish(stored(2, b"too ", parent=1), lost=True)
        await publisher.publish(stored(3, b"Hell"), lost=True)
        del publisher.buffer[0]
        await publisher.subscribed()
        await publisher.publish(stored(4, b"o wo", parent=3))
        await follower.until(lambda: follower.status.synced and follower.status.seq == 3)
        follower.agrees_with([publisher.held[3], publisher.held[4]])
        assert follower.index.skipped["unknown_parent"] == 1
        assert follower.status.resyncs == 1


async def test_with_neither_snapshot_nor_replay_it_starts_at_the_live_stream() -> None:
    async with following(snapshot_status=404, replay=False) as (publisher, follower):
        await follower.until(lambda: follower.status.synced)
        publisher.next_seq = 7
        await publisher.publish(stored(1, b"Hell"))
        await publisher.publish(stored(2, b"o wo", parent=1))
        await follower.caught_up(publisher)
        assert (follower.status.resyncs, follower.status.gaps) == (1, 0)


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param((encode_sequence_number(1), b"\xc1"), id="payload-is-no-msgpack"),
        pytest.param((encode_sequence_number(1), b"\x91" * 50_000), id="nested-without-end"),
        pytest.param((b"\x01", b"\x90"), id="sequence-number-too-short"),
        pytest.param((encode_sequence_number(1),), id="two-frames"),
        pytest.param((encode_sequence_number(1), b"\x90", b""), id="four-frames"),
    ],
)
async def test_a_malformed_message_is_counted_and_resynchronised(
    frames: tuple[bytes, ...],
) -> None:
    async with following() as (publisher, follower):
        await publisher.publish(stored(1, b"Hell"))
        await follower.caught_up(publisher)
        await publisher.send(*frames)
        await follower.until(lambda: not follower.status.synced)
        await publisher.publish(stored(2, b"o wo", parent=1))
        await follower.caught_up(publisher)
        assert follower.status.malformed.total() == 1
        assert False in follower.trusted


async def test_a_publisher_of_nonsense_causes_no_storm_of_snapshots() -> None:
    async with following() as (publisher, follower):
        await follower.until(lambda: follower.status.synced)
        for number in range(300):
            await publisher.send(encode_sequence_number(number), b"\xc1")
            await asyncio.sleep(0.001)
        assert publisher.snapshots_asked < 10
        publisher.next_seq = 300
        await publisher.publish(AllBlocksCleared(), stored(1, b"Hell"))
        await follower.caught_up(publisher)


async def test_removals_and_children_of_unknown_blocks_are_counted() -> None:
    async with following() as (publisher, follower):
        await follower.until(lambda: follower.status.synced)
        events = [BlockRemoved(block_hashes=[99]), stored(5, b"orph", parent=98)]
        batch = encode_batch(EventBatch(ts=0.0, events=events))
        await publisher.send(encode_sequence_number(0), batch)
        await follower.until(lambda: follower.status.seq == 0)
        skipped = follower.index.skipped
        assert (skipped["removed_unknown"], skipped["unknown_parent"]) == (1, 1)
        assert follower.status.synced
