"""What a replica can be asked about its cache, beside the live stream: snapshots and past batches.

ours      GET /kv_cache/snapshot     all it holds, as events
SGLang    snapshot socket            the hashes of all it holds
any       replay socket              past batches, as far as its buffer reaches
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import httpx
import zmq
import zmq.asyncio

from protocol.kv_events import (
    ReplayMessage,
    SnapshotReader,
    decode_replay_message,
    encode_sequence_number,
)
from protocol.sglang_snapshot import SNAPSHOT_REQUEST, PlacementReader, SnapshotRefused
from router.config import KvEventsConfig
from router.core.ranks import rank_endpoint

_SNAPSHOT_TIMEOUT_S = 10.0
# SGLang takes up to 5 s to take one, then streams it.
_SILENCE_S = 6.0
# An engine answers replays between its live sends, and at least every 0.1 s.
_REPLAY_SILENCE_S = 2.0
_REPLAY_TIMEOUT_S = 30.0
# Room for a whole replay: what does not fit here waits where it comes from, and is lost there.
_RECEIVE_QUEUE_MESSAGES = 100_000


class Unavailable(Exception):
    """The replica does not answer, or not yet. The message says what was asked, and what came."""


class KvSources:
    """Asks one rank of one replica."""

    def __init__(
        self,
        base_url: str,
        config: KvEventsConfig,
        rank: int,
        context: zmq.asyncio.Context,
        http: httpx.AsyncClient,
    ) -> None:
        self.rank = rank
        self.endpoint = rank_endpoint(config.endpoint, rank)
        self.has_replay = config.replay is not None
        self.has_placement = config.snapshot is not None
        self._replay = config.replay and rank_endpoint(config.replay, rank)
        self._placement = config.snapshot and rank_endpoint(config.snapshot, rank)
        self._url = f"{base_url}/kv_cache/snapshot"
        self._context = context
        self._http = http

    async def snapshot(self) -> SnapshotReader | None:
        """What our replica holds, as events. None: this replica is not ours, it has no such path.

        Raises:
            Unavailable, MalformedEvents.
        """
        if self.rank > 0:
            return None  # ours has one
        try:
            async with asyncio.timeout(_SNAPSHOT_TIMEOUT_S):
                response = await self._http.get(self._url, timeout=_SNAPSHOT_TIMEOUT_S)
        except (httpx.HTTPError, TimeoutError) as error:
            raise Unavailable(f"snapshot: {str(error) or type(error).__name__}") from error
        if response.status_code in (404, 405):
            return None
        if response.status_code != 200:
            raise Unavailable(f"snapshot: answered {response.status_code}")
        return SnapshotReader(response.content)

    async def placement(self) -> PlacementReader:
        """The hashes of all that SGLang holds.

        Raises:
            Unavailable, MalformedEvents.
        """
        assert self._placement is not None
        reader = PlacementReader()
        try:
            async with (
                asyncio.timeout(_REPLAY_TIMEOUT_S),
                self._dealer(self._placement, SNAPSHOT_REQUEST) as socket,
            ):
                whole = False
                while not whole:
                    async with asyncio.timeout(_SILENCE_S):
                        frames = await socket.recv_multipart()
                    whole = reader.take(frames)
        except SnapshotRefused as refusal:
            raise Unavailable(f"snapshot socket: refused: {refusal}") from refusal
        except TimeoutError as error:
            limits = f"{_SILENCE_S} s for a message, {_REPLAY_TIMEOUT_S} s for all"
            raise Unavailable(f"snapshot socket: took too long ({limits})") from error
        return reader

    async def replay(self, first_seq: int) -> AsyncGenerator[ReplayMessage, None]:
        """The batches from `first_seq` on that its buffer still has.

        Raises:
            Unavailable, MalformedEvents.
        """
        if self._replay is None:
            raise Unavailable("it has no replay socket")
        request = encode_sequence_number(first_seq)
        until = asyncio.get_running_loop().time() + _REPLAY_TIMEOUT_S
        async with self._dealer(self._replay, request) as socket:
            while True:
                try:
                    async with asyncio.timeout(_REPLAY_SILENCE_S):
                        frames = await socket.recv_multipart()
                except TimeoutError as error:
                    raise Unavailable(f"replay: silent for {_REPLAY_SILENCE_S} s") from error
                message = decode_replay_message(frames)
                if message is None:
                    return
                if asyncio.get_running_loop().time() > until:
                    raise Unavailable(f"replay: no end within {_REPLAY_TIMEOUT_S} s")
                yield message

    @asynccontextmanager
    async def _dealer(self, endpoint: str, request: bytes) -> AsyncIterator[zmq.asyncio.Socket]:
        """A socket of its own for one question: a late answer to another never reaches it.

        Raises Unavailable.
        """
        try:
            socket = self._context.socket(zmq.DEALER)
        except zmq.ZMQError as error:
            raise Unavailable(f"{endpoint}: {error}") from error
        try:
            socket.linger = 0
            socket.rcvhwm = _RECEIVE_QUEUE_MESSAGES
            socket.connect(endpoint)
            await socket.send_multipart([b"", request])
            yield socket
        except zmq.ZMQError as error:
            raise Unavailable(f"{endpoint}: {error}") from error
        finally:
            socket.close(linger=0)
