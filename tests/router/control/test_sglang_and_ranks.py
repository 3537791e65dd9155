"""SGLang's workers, and engines of several ranks, are followed through what goes wrong."""

import pytest
import zmq.asyncio

from protocol.kv_events import AllBlocksCleared, BlockRemoved, encode_sequence_number
from router.control import kv_sources
from router.core.ranks import rank_cache_id
from tests.support.event_publisher import REPLICA, following, stored
from tests.support.sglang_publisher import SglangPublisher


async def test_past_batches_tell_the_text_and_the_snapshot_what_is_held() -> None:
    async with following(make=SglangPublisher, wait=False) as (publisher, follower):
        assert isinstance(publisher, SglangPublisher)
        await publisher.publish(stored(1, b"Hell"), stored(2, b"o wo", 1), lost=True)
        await publisher.publish(BlockRemoved(block_hashes=[2]), lost=True)
        publisher.unheard_of = [77, 78]
        await publisher.subscribed()
        await publisher.publish(stored(3, b"rld!", 1))
        await follower.caught_up(publisher)
        status = follower.status
        assert (status.epoch, status.unknown_blocks) == ("epoch-0", 2)
        assert (status.gaps, status.malformed) == (0, {})
        await publisher.publish(AllBlocksCleared(), stored(4, b"anew"))
        await follower.caught_up(publisher)


async def test_a_gap_without_replay_keeps_what_the_snapshot_names() -> None:
    async with following(make=SglangPublisher, replay=False) as (publisher, follower):
        await follower.until(lambda: follower.status.synced)
        await publisher.publish(stored(1, b"Hell"), stored(2, b"o wo", 1), stored(3, b"rld!", 2))
        await follower.caught_up(publisher)
        await publisher.publish(BlockRemoved(block_hashes=[3]), lost=True)
        await publisher.publish(stored(4, b"lost"), lost=True)
        await publisher.publish(stored(5, b"drop", 2))  # shows the gap, and is dropped with it
        await follower.until(lambda: follower.status.resyncs == 2 and follower.status.synced)
        follower.agrees_with([publisher.held[1], publisher.held[2]])
        assert follower.status.unknown_blocks == 2
        await publisher.publish(stored(6, b"more", 2))
        await follower.until(lambda: follower.status.seq == publisher.next_seq - 1)
        follower.agrees_with([publisher.held[1], publisher.held[2], publisher.held[6]])


async def test_a_gap_that_the_buffer_no_longer_has_costs_only_what_was_stored_in_it() -> None:
    async with following(make=SglangPublisher) as (publisher, follower):
        await follower.until(lambda: follower.status.synced)
        await publisher.publish(stored(1, b"Hell"), stored(2, b"o wo", 1))
        await follower.caught_up(publisher)
        await publisher.publish(BlockRemoved(block_hashes=[2]), stored(3, b"lost"), lost=True)
        publisher.buffer.clear()
        await publisher.publish(stored(4, b"rld!", 1), lost=True)
        await publisher.publish(stored(5, b"man?", 4))
        await follower.until(lambda: follower.status.resyncs == 2 and follower.status.synced)
        await follower.until(lambda: follower.status.seq in (4, 5))
        follower.agrees_with([publisher.held[1], publisher.held[4], publisher.held[5]])


async def test_a_removal_lost_for_good_leaves_nothing_behind_when_the_block_came_back() -> None:
    async with following(make=SglangPublisher) as (publisher, follower):
        await follower.until(lambda: follower.status.synced)
        await publisher.publish(stored(1, b"Hell"), stored(2, b"o wo", 1))
        await follower.caught_up(publisher)
        await publisher.publish(BlockRemoved(block_hashes=[2]), lost=True)
        publisher.buffer.clear()
        await publisher.publish(stored(2, b"o wo", 1), lost=True)
        await publisher.publish(stored(3, b"rld!", 2))
        await follower.until(lambda: follower.status.resyncs == 2 and follower.status.synced)
        await publisher.publish(BlockRemoved(block_hashes=[3, 2]))
        await follower.until(lambda: follower.status.seq == publisher.next_seq - 1)
        follower.agrees_with([publisher.held[1]])


async def test_a_snapshot_that_trickles_in_without_end_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kv_sources, "_REPLAY_TIMEOUT_S", 0.2)

    class Trickling(SglangPublisher):
        async def _answer(self) -> list[tuple[bytes, bytes]]:
            if self.snapshots_asked > 1:
                return await super()._answer()
            return (await super()._answer())[:1]  # and never the rest

    async with following(make=Trickling) as (publisher, follower):
        await publisher.until_asked(2)
        await publisher.publish(stored(1, b"Hell"))
        await follower.caught_up(publisher)


async def test_a_new_epoch_in_the_topic_is_a_restart() -> None:
    async with following(make=SglangPublisher) as (publisher, follower):
        await publisher.publish(stored(1, b"Hell"))
        await follower.caught_up(publisher)
        publisher.restart()
        # Its numbers do not show it: they go on where the old life's were.
        publisher.next_seq = 2
        await publisher.publish(stored(1, b"anew"))
        await follower.until(lambda: follower.status.epoch == "epoch-0+")
        await follower.caught_up(publisher)


async def test_a_message_that_comes_twice_in_one_epoch_is_ignored() -> None:
    async with following(make=SglangPublisher) as (publisher, follower):
        await follower.until(lambda: follower.status.synced)
        await publisher.publish(stored(1, b"Hell"), BlockRemoved(block_hashes=[1]))
        seq, payload = publisher.buffer[-1]
        for _ in range(3):
            await publisher.send(encode_sequence_number(seq), payload)
        await publisher.publish(stored(2, b"o wo"))
        await follower.caught_up(publisher)
        assert follower.status.resyncs == 1


async def test_a_busy_snapshot_socket_is_asked_again() -> None:
    def busy(context: zmq.asyncio.Context, rank: int) -> SglangPublisher:
        publisher = SglangPublisher(context, rank)
        publisher.refusals = [b"snapshot provider busy", b"snapshot capture timeout"]
        return publisher

    async with following(make=busy) as (publisher, follower):
        await publisher.until_asked(3)
        await publisher.publish(stored(1, b"Hell"))
        await follower.caught_up(publisher)
        assert follower.status.malformed == {}


async def test_a_snapshot_of_another_rank_is_refused_by_name() -> None:
    async with following(make=SglangPublisher) as (publisher, follower):
        await follower.until(lambda: follower.status.synced)
        publisher.rank = 3
        await publisher.publish(stored(1, b"Hell"))
        await publisher.until_asked(3)
        assert follower.status.malformed["rank"] >= 2
        assert not follower.status.synced
        publisher.rank = 0
        publisher.restart()
        await publisher.publish(stored(1, b"Hell"))
        await follower.caught_up(publisher)


async def test_a_rank_is_a_cache_of_its_own_at_ports_of_its_own() -> None:
    async with following(rank=2, wait=False) as (publisher, follower):
        await publisher.publish(stored(1, b"Hell"), lost=True)
        await publisher.subscribed()
        await publisher.publish(stored(2, b"o wo", 1))
        await follower.caught_up(publisher)
        assert follower.cache_id == rank_cache_id(REPLICA, 2)
        assert set(follower.tree.match((), b"Hello world").confirmed) == {follower.cache_id}
        assert (publisher.snapshots_asked, publisher.replays_asked) == (0, [0])


async def test_batches_of_another_rank_are_malformed_and_both_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with following(rank=1) as (publisher, follower):
        await follower.until(lambda: follower.status.synced)
        publisher.rank = 0
        await publisher.publish(stored(1, b"Hell"))
        await follower.until(lambda: follower.status.malformed["rank"] > 0)
        assert "is that of rank 0, not 1" in caplog.text
        follower.agrees_with([])
