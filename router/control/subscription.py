"""Keeps one cache's part of the index true: subscribe, snapshot, follow; repair what breaks.

    connect ─▶ handshake ─▶ snapshot (or replay from 0) ─▶ live ──gap──▶ replay ──still──▶ snapshot
                  ▲                                          │
                  └──────────── disconnected, restarted ◀────┘

Subscribing comes first, so that nothing falls between snapshot and live events. What a replica can
be asked differs:

    ours      its snapshot is events: the index is made anew from it
    SGLang    its snapshot is hashes without text (`_take_placement`): past batches tell the text of
              what they reach; what was known of the same life stays if it is named, else it goes
    vLLM      no snapshot: past batches from 0; what its buffer has dropped by then stays unknown
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from math import inf

import httpx
import zmq.asyncio

from protocol.kv_dialects import decode_batch
from protocol.kv_events import (
    BlockStored,
    EventBatch,
    KvEvent,
    Malformation,
    MalformedEvents,
    SnapshotReader,
    decode_sequence_number,
    portions,
)
from protocol.sglang_snapshot import PlacementReader, epoch_of_topic
from router.config import ReplicaConfig
from router.control.backoff import Backoff
from router.control.kv_sources import KvSources, Unavailable
from router.control.pace import Pace
from router.control.subscriber_socket import subscriber
from router.core.event_sequence import EventSequence, Verdict
from router.core.held_hashes import HeldHashes
from router.core.kv_index import KvIndex, is_full_attention
from router.core.ranks import rank_cache_id
from router.core.staleness import Staleness

log = logging.getLogger(__name__)

# A replica that loads its model cannot tell yet what it holds: ask again soon, so that it is known
# when its first requests come.
_NOT_READY_S = 0.5
# Followed for this long, a replica's events are taken to be in order again.
_STABLE_S = 5.0
# Some hundred microseconds of work at once, with requests served in between.
_BLOCKS_AT_ONCE = 64


class _Resync(Exception):
    """What we know of the cache can no longer be trusted: take it anew."""


class SubscriptionStatus:
    """What the operator and the policy may know about one cache's events."""

    def __init__(self) -> None:
        self.synced = False
        self.connected = False
        self.epoch: str | None = None
        self.seq: int | None = None  # last batch applied
        self.batches = 0
        self.gaps = 0
        self.malformed: Counter[Malformation] = Counter()
        self.resyncs = 0
        self.unknown_blocks = 0  # that a snapshot named and no event told the text of
        self.total_blocks: int | None = None
        self.block_size: int | None = None
        self.staleness = Staleness()

    def followed(self) -> None:
        """All the replica holds is known, and what changes is heard of."""
        self.synced = True
        self.staleness.followed()

    def lost(self, now: float) -> None:
        """What changes is no longer heard of, or makes no sense."""
        self.synced = False
        self.staleness.unfollowed(now)

    def trust(self, now: float) -> float:
        """How far the index is to be believed about this cache, 0 to 1. `now`: the loop's time."""
        return self.staleness.trust(now, following=self.synced)


class KvSubscription:
    """Follows one cache's events into the index. `run` until cancelled."""

    def __init__(
        self,
        replica: ReplicaConfig,
        index: KvIndex,
        context: zmq.asyncio.Context,
        http: httpx.AsyncClient,
        on_change: Callable[[SubscriptionStatus], None],
        *,
        rank: int = 0,
        pace: Pace | None = None,
    ) -> None:
        """
        Args:
            on_change: Told after each batch, and when the cache is or is not synchronised.
            rank: Which of the replica's data-parallel ranks.
            pace: Shared with all other subscriptions.
        """
        assert replica.kv_events is not None
        self.cache_id = rank_cache_id(replica.id, rank)
        self.status = SubscriptionStatus()
        self.name = replica.id if rank == 0 else f"{replica.id}, rank {rank}"
        self._topic = replica.kv_events.topic
        self._sources = KvSources(replica.base_url, replica.kv_events, rank, context, http)
        self._index = index
        self._held = HeldHashes() if self._sources.has_placement else None
        self._context = context
        self._on_change = on_change
        self._pace = pace or Pace()
        self._backoff = Backoff(first_s=0.1, most_s=_STABLE_S)
        self._not_ready = Backoff(first_s=_NOT_READY_S, most_s=_NOT_READY_S)
        self._resync_at = 0.0  # not before; in the loop's seconds
        self._synced_at = -inf

    def give_up(self) -> None:
        """After `run` has failed: what is known of the cache will not be kept true."""
        self.status.connected = False
        self._forget()
        self._unsynced()

    async def run(self) -> None:
        clock = asyncio.get_running_loop().time
        sequence: EventSequence | None = None
        with subscriber(self._context, self._sources.endpoint, self._topic) as messages:
            while True:
                if (connected := messages.take_change()) is not None:
                    sequence = None
                    self._connection_changed(connected)
                    if not connected:
                        await messages.discard(self._pace)
                    continue
                wait_s = None  # for news
                if self.status.connected and sequence is None:
                    wait_s = self._resync_at - clock()
                    if wait_s <= 0:
                        sequence = await self._resync()
                        continue
                if (frames := messages.take_message()) is None:
                    await messages.wait(wait_s)
                    self._pace.woken()
                elif sequence is not None and not await self._follow(frames, sequence):
                    sequence = None
                    await messages.discard(self._pace)
                await self._pace.pause()

    def _connection_changed(self, connected: bool) -> None:
        """Either way, what we know must be taken anew."""
        self.status.connected = connected
        self._resync_at = asyncio.get_running_loop().time()
        self._unsynced()

    def _unsynced(self) -> None:
        self.status.lost(asyncio.get_running_loop().time())
        self._on_change(self.status)

    def _forget(self, expected_blocks: int = 0) -> None:
        self._index.clear(self.cache_id, expected_blocks)
        if self._held is not None:
            self._held.clear()
        self.status.epoch = self.status.seq = None
        self.status.staleness.forgotten()

    # Live

    async def _follow(self, frames: list[bytes], sequence: EventSequence) -> bool:
        """Applies one live message; False when what we know must be taken anew."""
        try:
            await self._live(frames, sequence)
        except (_Resync, MalformedEvents) as reason:
            if isinstance(reason, MalformedEvents):
                self._count(reason)
            else:
                log.warning("replica %s: %s; resynchronising", self.name, reason)
            now = asyncio.get_running_loop().time()
            # At once, unless that has not helped just before: a publisher that keeps sending
            # nonsense must not make us ask for snapshots all the time.
            if now - self._synced_at > _STABLE_S:
                self._backoff.reset()
                self._resync_at = now
            else:
                self._resync_at = now + self._backoff.next_s()
            self._unsynced()
            return False
        return True

    def _count(self, error: MalformedEvents) -> None:
        """Logged once a kind: what is wrong with one message is wrong with thousands."""
        first = not self.status.malformed[error.kind]
        self.status.malformed[error.kind] += 1
        level = logging.WARNING if first else logging.DEBUG
        log.log(level, "replica %s: malformed (%s): %s", self.name, error.kind, error)

    async def _live(self, frames: list[bytes], sequence: EventSequence) -> None:
        if len(frames) != 3:
            message = f"an event message has 3 frames, not {len(frames)}"
            raise MalformedEvents(Malformation.FRAMES, message)
        epoch = epoch_of_topic(frames[0])
        if epoch is not None:
            if self.status.epoch is None:
                self.status.epoch = epoch
            elif epoch != self.status.epoch:
                raise _Resync(f"its epoch is now {epoch}: it has restarted")
        seq = decode_sequence_number(frames[1])
        verdict = sequence.judge(seq, same_life=epoch is not None)
        if verdict is Verdict.GAP:
            await self._fill_gap(sequence, before=seq)
            # A replay may end with the batch in hand, or just before it.
            verdict = Verdict.NEXT if sequence.replayed(seq) else Verdict.OLD
        if verdict is Verdict.RESTARTED:
            raise _Resync("its event numbers went back: it has restarted")
        if verdict is Verdict.NEXT:
            batch = await self._apply(seq, frames[2])
            self.status.staleness.applied(batch.ts, asyncio.get_running_loop().time())
            self._on_change(self.status)

    async def _fill_gap(self, sequence: EventSequence, *, before: int) -> None:
        assert sequence.next_seq is not None, "a gap is a distance from a known number"
        self.status.gaps += 1
        self.status.staleness.missing(before - sequence.next_seq)
        self._on_change(self.status)
        try:
            await self._replay(sequence, before=None, apply=self._apply)
        except Unavailable as reason:
            raise _Resync(f"batches were missed: {reason}") from reason
        if sequence.next_seq < before:
            raise _Resync(f"batches {sequence.next_seq} to {before - 1} are lost")
        self.status.staleness.missing(0)
        self._on_change(self.status)

    async def _apply(self, seq: int, payload: bytes, *, after_hole: bool = False) -> EventBatch:
        """
        Args:
            after_hole: Batches before this one are missing, perhaps.

        Raises:
            MalformedEvents.
        """
        batch = decode_batch(payload)
        rank = batch.data_parallel_rank
        if rank is not None and rank != self._sources.rank:
            message = f"{self._sources.endpoint} is that of rank {rank}, not {self._sources.rank}"
            raise MalformedEvents(Malformation.RANK, message)
        events = batch.events
        if self._held is not None and after_hole:
            events = self._held.apply_after_hole(events)
        elif self._held is not None:
            self._held.apply(events)
        await self._feed(events)
        self.status.seq = seq
        self.status.batches += 1
        return batch

    async def _feed(self, events: Iterable[KvEvent]) -> None:
        """Into the index, so much at a time that requests do not notice."""
        for portion in portions(events, _BLOCKS_AT_ONCE):
            await self._pace.pause()
            self._index.apply(self.cache_id, portion)
            last = portion[-1]
            if isinstance(last, BlockStored) and last.token_ids and is_full_attention(last):
                self.status.block_size = last.block_size

    # Anew

    async def _resync(self) -> EventSequence | None:
        """Learns all the cache holds. None: it cannot tell yet; ask again at `_resync_at`."""
        self.status.resyncs += 1
        clock = asyncio.get_running_loop().time
        try:
            if self._sources.has_placement:
                sequence = await self._take_placement(await self._sources.placement())
            elif (reader := await self._sources.snapshot()) is not None:
                sequence = await self._take_snapshot(reader)
            else:
                self._forget()
                sequence = EventSequence(None)
                await self._replay_into(sequence)
        except Unavailable as reason:
            log.info("replica %s: not yet: %s", self.name, reason)
            self._resync_at = clock() + self._not_ready.next_s()
            return None
        except MalformedEvents as error:
            self._count(error)
            self._resync_at = clock() + self._backoff.next_s()
            return None
        self._synced_at = clock()
        self.status.followed()
        log.info("replica %s: synchronised up to batch %s", self.name, sequence.next_seq)
        self._on_change(self.status)
        return sequence

    async def _take_snapshot(self, reader: SnapshotReader) -> EventSequence:
        """Raises MalformedEvents; then nothing is known."""
        self._forget(reader.blocks_max)
        try:
            await self._feed(reader.events())
        except MalformedEvents:
            self._forget()
            raise
        self.status.epoch = reader.epoch
        self.status.seq = reader.seq if reader.seq >= 0 else None
        self.status.total_blocks = reader.total_blocks
        self.status.block_size = reader.block_size
        return EventSequence(reader.seq + 1)

    async def _take_placement(self, placement: PlacementReader) -> EventSequence:
        """What past batches tell, and of what is known what the snapshot names.

        Within one life of the engine a hash stands for one text, so a hole in the batches does no
        harm: what was stored in it stays unknown, what was removed in it is not named, or was
        stored again after it.
        """
        assert self._held is not None
        if placement.rank != self._sources.rank:
            message = f"snapshot of rank {placement.rank}, not {self._sources.rank}"
            raise MalformedEvents(Malformation.RANK, message)
        if placement.epoch != self.status.epoch:
            self._forget()
            self.status.epoch = placement.epoch
        sequence = EventSequence(None)
        await self._replay_into(sequence, before=placement.resume_seq)
        await self._feed(self._held.retain(placement.hashes))
        self.status.unknown_blocks = self._held.unknown(placement.hashes)
        self.status.seq = placement.resume_seq - 1 if placement.resume_seq else None
        return EventSequence(placement.resume_seq)

    async def _replay_into(self, sequence: EventSequence, before: int | None = None) -> None:
        """Applies past batches not yet applied, up to `before`, as far as they can be had."""
        if not self._sources.has_replay:
            return
        try:
            await self._replay(sequence, before=before, apply=self._apply_or_start_after)
        except (Unavailable, MalformedEvents) as reason:
            if isinstance(reason, MalformedEvents):
                self._count(reason)
            log.warning("replica %s: what it held before is not known: %s", self.name, reason)

    async def _apply_or_start_after(self, seq: int, payload: bytes) -> None:
        """A past batch that makes no sense ends what came before it: that cannot be kept true."""
        try:
            await self._apply(seq, payload, after_hole=True)
        except MalformedEvents as error:
            self._count(error)
            epoch = self.status.epoch
            self._forget()
            self.status.epoch = epoch

    async def _replay(
        self,
        sequence: EventSequence,
        *,
        before: int | None,
        apply: Callable[[int, bytes], Awaitable[object]],
    ) -> None:
        """Applies past batches that follow one another, up to `before`.

        Engines drop what a replay's queue does not hold (a ROUTER's does, at 1000 messages unless
        told otherwise): what was left out is asked for again, as long as that helps.

        Raises:
            Unavailable, MalformedEvents.
        """
        while True:
            first, last, failure = sequence.next_seq, -1, None
            applied = -1 if self.status.seq is None else self.status.seq
            try:
                async with aclosing(self._sources.replay(applied + 1)) as messages:
                    async for message in messages:
                        if before is not None and message.seq >= before:
                            continue
                        last = max(last, message.seq)
                        if sequence.replayed(message.seq):
                            await apply(message.seq, message.payload)
            except Unavailable as reason:
                failure = reason
            if sequence.next_seq == first:
                if failure is not None:
                    raise failure
                return
            assert sequence.next_seq is not None
            if failure is None and last < sequence.next_seq:
                return
