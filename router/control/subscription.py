"""Keeps one replica's part of the index true: subscribe, snapshot, follow; repair what breaks.

    connect ─▶ handshake ─▶ snapshot (or replay from 0) ─▶ live ──gap──▶ replay ──still──▶ snapshot
                  ▲                                          │
                  └──────────── disconnected, restarted ◀────┘

Subscribing comes first, so that nothing falls between snapshot and live events. A replica without
a snapshot endpoint (vLLM) is replayed from 0; what its buffer has dropped by then stays unknown.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from math import inf

import httpx
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from protocol.kv_dialects import decode_batch
from protocol.kv_events import (
    Malformation,
    MalformedEvents,
    decode_replay_message,
    decode_sequence_number,
    decode_snapshot,
    encode_sequence_number,
)
from router.config import KvEventsConfig, ReplicaConfig
from router.control.backoff import Backoff
from router.core.event_sequence import EventSequence, Verdict
from router.core.kv_index import KvIndex

log = logging.getLogger(__name__)

_REPLAY_TIMEOUT_S = 2.0
_SNAPSHOT_TIMEOUT_S = 10.0
_HEARTBEAT_MS = 2000
_HEARTBEAT_TIMEOUT_MS = 6000
_RECONNECT_MS, _RECONNECT_MAX_MS = 100, 2000
_RECEIVE_QUEUE_MESSAGES = 100_000
# A replica that loads its model cannot tell yet what it holds: ask again soon, so that it is known
# when its first requests come.
_NOT_READY_RETRY_S = 0.5
# Followed for this long, a replica's events are taken to be in order again.
_STABLE_S = 5.0
# A snapshot is applied so many blocks at a time, with requests served in between.
_BLOCKS_AT_ONCE = 256


class _Resync(Exception):
    """What we know of the replica can no longer be trusted: take it anew."""


class SubscriptionStatus:
    """What the operator and the policy may know about one replica's events."""

    def __init__(self) -> None:
        self.synced = False
        self.connected = False
        self.epoch: str | None = None
        self.seq: int | None = None  # last batch applied
        self.lag_s: float | None = None  # its age when it was applied, by the replica's clock
        self.batches = 0
        self.gaps = 0
        self.malformed = 0
        self.resyncs = 0
        self.total_blocks: int | None = None
        self.block_size: int | None = None


class KvSubscription:
    """Follows one replica's events into the index. `run` until cancelled."""

    def __init__(
        self,
        replica: ReplicaConfig,
        index: KvIndex,
        context: zmq.asyncio.Context,
        http: httpx.AsyncClient,
        on_change: Callable[[SubscriptionStatus], None],
    ) -> None:
        """
        Args:
            on_change: Told after each batch, and when the replica is or is not synchronised.
        """
        assert replica.kv_events is not None
        self.status = SubscriptionStatus()
        self._replica = replica
        self._events: KvEventsConfig = replica.kv_events
        self._index = index
        self._context = context
        self._http = http
        self._on_change = on_change
        self._backoff = Backoff(first_s=0.1, most_s=_STABLE_S)
        self._resync_at = 0.0  # not before; in the loop's seconds
        self._synced_at = -inf

    @property
    def replica_id(self) -> str:
        return self._replica.id

    def give_up(self) -> None:
        """After `run` has failed: what is known of the replica will not be kept true."""
        self.status.connected = False
        self._index.clear(self._replica.id)
        self._unsynced()

    async def run(self) -> None:
        clock = asyncio.get_running_loop().time
        async with self._sockets() as (subscriber, monitor):
            poller = zmq.asyncio.Poller()
            poller.register(subscriber, zmq.POLLIN)
            poller.register(monitor, zmq.POLLIN)
            sequence: EventSequence | None = None
            while True:
                wait_s = None  # for news
                if self.status.connected and sequence is None:
                    wait_s = self._resync_at - clock()
                    if wait_s <= 0:
                        sequence = await self._resync()
                        continue
                ready = dict(await poller.poll(None if wait_s is None else wait_s * 1000))
                if monitor in ready:
                    await self._connection_changed(monitor)
                    sequence = None
                    if not self.status.connected:
                        await _discard_queued(subscriber)
                elif subscriber in ready:
                    frames = await subscriber.recv_multipart()
                    if sequence is not None and not await self._follow(frames, sequence):
                        sequence = None
                        await _discard_queued(subscriber)

    async def _follow(self, frames: list[bytes], sequence: EventSequence) -> bool:
        """Applies one live message; False when what we know must be taken anew."""
        try:
            await self._live(frames, sequence)
        except _Resync as reason:
            log.warning("replica %s: %s; resynchronising", self._replica.id, reason)
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

    @asynccontextmanager
    async def _sockets(self) -> AsyncIterator[tuple[zmq.asyncio.Socket, zmq.asyncio.Socket]]:
        subscriber = self._context.socket(zmq.SUB)
        monitor = subscriber.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        try:
            subscriber.rcvhwm = _RECEIVE_QUEUE_MESSAGES
            subscriber.linger = 0
            subscriber.heartbeat_ivl = _HEARTBEAT_MS
            subscriber.heartbeat_timeout = _HEARTBEAT_TIMEOUT_MS
            subscriber.reconnect_ivl = _RECONNECT_MS
            subscriber.reconnect_ivl_max = _RECONNECT_MAX_MS
            subscriber.subscribe(self._events.topic)
            subscriber.connect(self._events.endpoint)
            yield subscriber, monitor
        finally:
            subscriber.disable_monitor()
            monitor.close(linger=0)
            subscriber.close(linger=0)

    async def _connection_changed(self, monitor: zmq.asyncio.Socket) -> None:
        """Takes one monitor message. Either way, what we know must be taken anew."""
        message = await recv_monitor_message(monitor)
        self.status.connected = message["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED
        self._resync_at = asyncio.get_running_loop().time()
        self._unsynced()

    def _unsynced(self) -> None:
        self.status.synced = False
        self._on_change(self.status)

    async def _resync(self) -> EventSequence | None:
        """Learns all the replica holds. None: it cannot tell yet; ask again at `_resync_at`."""
        self.status.resyncs += 1
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(_SNAPSHOT_TIMEOUT_S):
                response = await self._http.get(
                    f"{self._replica.base_url}/kv_cache/snapshot", timeout=_SNAPSHOT_TIMEOUT_S
                )
            if response.status_code == 200:
                sequence = await self._take_snapshot(response.content)
            elif response.status_code in (404, 405):
                sequence = await self._replay_from_start()
            else:
                self._resync_at = clock() + _NOT_READY_RETRY_S
                return None
        except (httpx.HTTPError, TimeoutError, MalformedEvents) as error:
            reason = str(error) or type(error).__name__
            log.info("replica %s: no snapshot yet: %s", self._replica.id, reason)
            wait_s = _NOT_READY_RETRY_S
            if isinstance(error, MalformedEvents):
                self.status.malformed += 1
                wait_s = self._backoff.next_s()
            self._resync_at = clock() + wait_s
            return None
        self._synced_at = clock()
        self.status.synced = True
        self._on_change(self.status)
        return sequence

    async def _take_snapshot(self, payload: bytes) -> EventSequence:
        snapshot = decode_snapshot(payload)
        self._index.clear(self._replica.id)
        blocks = 0
        for event in snapshot.events:
            self._index.apply(self._replica.id, (event,))
            blocks += len(event.block_hashes)
            if blocks >= _BLOCKS_AT_ONCE:
                blocks = 0
                await asyncio.sleep(0)
        self.status.epoch = snapshot.epoch
        self.status.seq = snapshot.seq if snapshot.seq >= 0 else None
        self.status.total_blocks = snapshot.total_blocks
        self.status.block_size = snapshot.block_size
        log.info(
            "replica %s: synchronised at batch %d, epoch %s, %d events",
            self._replica.id, snapshot.seq, snapshot.epoch, len(snapshot.events),
        )  # fmt: skip
        return EventSequence(snapshot.seq + 1)

    async def _replay_from_start(self) -> EventSequence:
        self._index.clear(self._replica.id)
        self.status.epoch = self.status.seq = None
        sequence = EventSequence(None)
        if self._events.replay is not None:
            try:
                await self._replay(sequence, first_seq=0)
            except _Resync as reason:
                log.warning(
                    "replica %s: starting with an empty index: %s", self._replica.id, reason
                )
        return sequence

    async def _live(self, frames: list[bytes], sequence: EventSequence) -> None:
        """Applies one live message, filling the gap before it if there is one."""
        try:
            if len(frames) != 3:
                raise MalformedEvents(
                    Malformation.FRAMES, f"an event message has 3 frames, not {len(frames)}"
                )
            seq = decode_sequence_number(frames[1])
            verdict = sequence.judge(seq)
            if verdict is Verdict.GAP:
                await self._fill_gap(sequence, before=seq)
                # A replay may end with the batch in hand, or just before it.
                verdict = Verdict.NEXT if sequence.replayed(seq) else Verdict.OLD
            if verdict is Verdict.NEXT:
                self._apply(seq, frames[2])
        except MalformedEvents as error:
            self.status.malformed += 1
            raise _Resync(f"malformed event: {error}") from error
        if verdict is Verdict.RESTARTED:
            raise _Resync("its event numbers went back: it has restarted")

    async def _fill_gap(self, sequence: EventSequence, *, before: int) -> None:
        self.status.gaps += 1
        missing = sequence.next_seq
        assert missing is not None, "a gap is a distance from a known number"
        await self._replay(sequence, first_seq=missing)
        if sequence.next_seq is None or sequence.next_seq < before:
            raise _Resync(f"batches {sequence.next_seq} to {before - 1} are lost")

    async def _replay(self, sequence: EventSequence, *, first_seq: int) -> None:
        """Asks for the batches from `first_seq` on and applies those that follow one another."""
        if self._events.replay is None:
            raise _Resync("batches were missed and it has no replay socket")
        socket = self._context.socket(zmq.DEALER)
        try:
            socket.linger = 0
            socket.connect(self._events.replay)
            async with asyncio.timeout(_REPLAY_TIMEOUT_S):
                await socket.send_multipart([b"", encode_sequence_number(first_seq)])
                while (message := decode_replay_message(await socket.recv_multipart())) is not None:
                    if sequence.replayed(message.seq):
                        self._apply(message.seq, message.payload)
        except TimeoutError as error:
            raise _Resync(f"no replay within {_REPLAY_TIMEOUT_S} s") from error
        except MalformedEvents as error:
            self.status.malformed += 1
            raise _Resync(f"malformed replay: {error}") from error
        finally:
            socket.close(linger=0)

    def _apply(self, seq: int, payload: bytes) -> None:
        batch = decode_batch(payload)
        self._index.apply(self._replica.id, batch.events)
        self.status.seq = seq
        self.status.batches += 1
        self.status.lag_s = max(0.0, time.time() - batch.ts)
        self._on_change(self.status)


async def _discard_queued(subscriber: zmq.asyncio.Socket) -> None:
    """Drops what is left of a stream we gave up on: a snapshot taken from now on has it too."""
    for _ in range(_RECEIVE_QUEUE_MESSAGES):
        if not await subscriber.poll(0):
            return
        await subscriber.recv_multipart()
