"""KV events in memory: what the router asks of ZMQ sockets and of HTTP, without either.

A subscriber hears of connections made and lost, and of batches in between; on their way these may
be lost, come twice, late, or garbled. Replays and snapshots are answered as a replica's engine
answers them, if it is there and not frozen.
"""

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import httpx

from protocol.kv_events import END_OF_REPLAY, decode_sequence_number, encode_sequence_number
from protocol.sglang_snapshot import SNAPSHOT_REQUEST
from router.control.pace import Pace
from tests.sim.network import BEHIND_S, Network

if TYPE_CHECKING:
    from tests.sim.replica import SimReplica

_RECONNECT_S = 0.1
_LATE_S = 0.05


class SimSubscriber:
    """One SUB socket: what `router.control.subscriber_socket.Subscriber` is to a subscription.

    Attributes:
        life: Of the replica, as this is connected to; None: it is not.
    """

    def __init__(self, post: "Post", own_name: str, replica: "SimReplica") -> None:
        self._post = post
        self.own_name = own_name
        self.replica = replica
        self.life: int | None = None
        self.closed = False
        self._hears = False  # the publisher knows of it
        self._changes: deque[bool] = deque()
        self._messages: deque[list[bytes]] = deque()
        self._news: asyncio.Future[None] | None = None
        self._arrives_at = 0.0
        self._post.loop.call_later(post.delay_s(self), self._try_to_connect)

    @property
    def is_quiet(self) -> bool:
        """Whether it has nothing to tell."""
        return not self._changes and not self._messages

    # As the real one

    def take_message(self) -> list[bytes] | None:
        return self._messages.popleft() if self._messages else None

    def take_change(self) -> bool | None:
        return self._changes.popleft() if self._changes else None

    async def discard(self, pace: Pace) -> None:
        while self.take_message() is not None:
            await pace.pause()

    async def wait(self, timeout_s: float | None) -> None:
        if not self.is_quiet:
            return
        self._news = self._post.loop.create_future()
        timer = None
        if timeout_s is not None:
            timer = self._post.loop.call_later(timeout_s, self._tell)
        try:
            await self._news
        finally:
            self._news = None
            if timer is not None:
                timer.cancel()

    # The network's side

    def _try_to_connect(self) -> None:
        if self.closed or self.life is not None:
            return
        replica = self.replica
        if not replica.up or self._post.network.parted_s(self.own_name, replica.name):
            self._post.loop.call_later(_RECONNECT_S, self._try_to_connect)
            return
        self.life = replica.life
        replica.subscribers[self] = None
        self._changes.append(True)
        self._tell()
        self._post.loop.call_later(self._post.delay_s(self), self._heard_of, self.life)

    def _heard_of(self, life: int) -> None:
        self._hears = life == self.life

    def disconnect(self) -> None:
        """The replica is gone, or nothing comes through to it."""
        if self.life is None:
            return
        self.life, self._hears = None, False
        self.replica.subscribers.pop(self, None)
        self._changes.append(False)
        self._tell()
        self._post.loop.call_later(_RECONNECT_S, self._try_to_connect)

    def close(self) -> None:
        self.closed = True
        self.replica.subscribers.pop(self, None)

    def send(self, frames: list[bytes]) -> None:
        """Told by the replica: a batch is on its way."""
        if not self._hears:
            return
        post, faults, rng = self._post, self._post.network.faults, self._post.rng
        if rng.random() < faults.drop_batch:
            return
        if rng.random() < faults.garble_batch:
            frames = [*frames[:2], frames[2][:-1]]
        now = post.loop.time()
        at = self._arrives_at = max(self._arrives_at + BEHIND_S, now + post.delay_s(self))
        if rng.random() < faults.late_batch:
            at += _LATE_S * rng.random()
        for _ in range(2 if rng.random() < faults.double_batch else 1):
            post.loop.call_at(at, self._arrive, frames, self.life)
            at += _LATE_S * rng.random()

    def _arrive(self, frames: list[bytes], life: int | None) -> None:
        if life == self.life:
            self._messages.append(frames)
            self._tell()

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


class _Dealer:
    """A DEALER socket that asks for one replay, or for SGLang's snapshot."""

    linger = rcvhwm = 0

    def __init__(self, post: "Post") -> None:
        self._post = post
        self._answers: asyncio.Queue[list[bytes]] = asyncio.Queue()
        self._arrives_at = 0.0
        self._closed = False

    def connect(self, endpoint: str) -> None:
        self._own_name, self._replica = self._post.names_in(endpoint)

    async def send_multipart(self, frames: list[bytes]) -> None:
        self._request = frames[1]
        delay_s = self._post.network.delay_s(self._own_name, self._replica.name)
        self._post.loop.call_later(delay_s, self._ask)

    def _ask(self) -> None:
        if self._closed:
            return
        if not self._replica.up or self._replica.frozen:  # ZMQ keeps it until somebody is there
            self._post.loop.call_later(_RECONNECT_S, self._ask)
            return
        if self._request == SNAPSHOT_REQUEST:
            for kind, body in self._replica.engine.placement():
                self._answer([b"", kind, body])
            return
        faults, rng = self._post.network.faults, self._post.rng
        first = decode_sequence_number(self._request)
        batches = [one for one in self._replica.buffer if one.seq >= first]
        for batch in batches:
            if rng.random() >= faults.drop_replayed:
                self._answer([b"", batch.topic, encode_sequence_number(batch.seq), batch.payload])
        self._answer([b"", b"", END_OF_REPLAY, b""])

    def _answer(self, frames: list[bytes]) -> None:
        delay_s = self._post.network.delay_s(self._own_name, self._replica.name)
        now = self._post.loop.time()
        self._arrives_at = max(self._arrives_at + BEHIND_S, now + delay_s)
        self._post.loop.call_at(self._arrives_at, self._answers.put_nowait, frames)

    async def recv_multipart(self) -> list[bytes]:
        return await self._answers.get()

    def close(self, linger: int = 0) -> None:
        self._closed = True


@dataclass(frozen=True, slots=True)
class _Response:
    status_code: int
    content: bytes


class Post:
    """One worker's way to its replicas' events: a ZMQ context and an HTTP client in one."""

    def __init__(self, network: Network, replicas: Mapping[str, "SimReplica"], rng: Random) -> None:
        self.network = network
        self.loop = network.loop
        self.rng = rng
        self.subscribers: dict[str, SimSubscriber] = {}
        self._replicas = replicas

    def names_in(self, address: str) -> tuple[str, "SimReplica"]:
        """Who asks, and who is asked: see `Network`."""
        own_name, name = address.partition("://")[2].split("/")[0].rsplit(":", 1)[0].split(".")
        return own_name, self._replicas[name]

    def delay_s(self, subscriber: SimSubscriber) -> float:
        return self.network.delay_s(subscriber.own_name, subscriber.replica.name)

    def socket(self, kind: int) -> _Dealer:
        return _Dealer(self)

    async def get(self, url: str, timeout: float) -> _Response:
        """Only snapshots are asked for. Raises httpx.ConnectError."""
        own_name, replica = self.names_in(url)
        await asyncio.sleep(self.network.delay_s(own_name, replica.name))
        if not replica.up:
            raise httpx.ConnectError("connection refused")
        life = replica.life
        await replica.until_thawed()
        if life != replica.life or not replica.up:
            raise httpx.ReadError("the replica closed the connection")
        status, content = replica.snapshot()
        await asyncio.sleep(self.network.delay_s(own_name, replica.name))
        return _Response(status, content)


@contextmanager
def sim_subscriber(post: Post, endpoint: str, topic: str) -> Iterator[SimSubscriber]:
    """In the place of `router.control.subscriber_socket.subscriber`."""
    own_name, replica = post.names_in(endpoint)
    found = post.subscribers[replica.name] = SimSubscriber(post, own_name, replica)
    try:
        yield found
    finally:
        found.close()
