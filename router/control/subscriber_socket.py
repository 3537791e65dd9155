"""The SUB socket of a KV-event subscription: reconnects by itself, and says when it has.

Read without waiting, and waited for on its file descriptor: zmq.asyncio's poller takes 0.2 ms a
message, several times what the message then costs.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from router.control.pace import Pace

_HEARTBEAT_MS = 2000
_HEARTBEAT_TIMEOUT_MS = 6000
_RECONNECT_MS, _RECONNECT_MAX_MS = 100, 2000
_RECEIVE_QUEUE_MESSAGES = 100_000
_READABLE = int(zmq.POLLIN)  # a flag of its own kind takes microseconds to compare


class Subscriber:
    """Takes what is there. ZMQ says by its descriptor that something may be there again, but only
    to who has taken all that was: call `wait` right after both takes said None."""

    def __init__(self, socket: zmq.Socket[bytes], monitor: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._monitor = monitor
        self._loop = asyncio.get_running_loop()
        self._descriptors = [int(one.getsockopt(zmq.FD)) for one in (socket, monitor)]
        self._watched = False
        self._news: asyncio.Future[None] | None = None

    def take_message(self) -> list[bytes] | None:
        """The next message's frames, if one is there."""
        # Asking first costs less than the error that says that there is none.
        if not _has_one(self._socket):
            return None
        try:
            return self._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def take_change(self) -> bool | None:
        """Whether it has just been connected (True) or disconnected (False), if either."""
        if not _has_one(self._monitor):
            return None
        try:
            message = recv_monitor_message(self._monitor, zmq.NOBLOCK)
        except zmq.Again:
            return None
        return message["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED

    async def discard(self, pace: Pace) -> None:
        """Drops what is left of a stream we gave up on: a snapshot taken from now on has it too."""
        for _ in range(_RECEIVE_QUEUE_MESSAGES):
            if self.take_message() is None:
                return
            await pace.pause()

    async def wait(self, timeout_s: float | None) -> None:
        """Until something may be there to take, or so long."""
        news = self._news = self._loop.create_future()
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, _settle, news)
        self._watch()
        try:
            await news
        finally:
            self._news = None
            if timer is not None:
                timer.cancel()

    def close(self) -> None:
        self._unwatch()

    # The loop watches them from one wait to the next, since to begin takes several system calls.

    def _watch(self) -> None:
        if not self._watched:
            self._watched = True
            for descriptor in self._descriptors:
                self._loop.add_reader(descriptor, self._readable)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            for descriptor in self._descriptors:
                self._loop.remove_reader(descriptor)

    def _readable(self) -> None:
        if self._news is not None:
            _settle(self._news)
        else:
            self._unwatch()  # they stay readable for as long as we do something else


def _has_one(socket: zmq.Socket[bytes]) -> bool:
    return bool(int(socket.getsockopt(zmq.EVENTS)) & _READABLE)


def _settle(news: "asyncio.Future[None]") -> None:
    if not news.done():
        news.set_result(None)


@contextmanager
def subscriber(context: zmq.asyncio.Context, endpoint: str, topic: str) -> Iterator[Subscriber]:
    """Connects, now or as soon as somebody is there."""
    socket: zmq.Socket[bytes] = zmq.Context.shadow(context.underlying).socket(zmq.SUB)
    monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
    messages = Subscriber(socket, monitor)
    try:
        socket.rcvhwm = _RECEIVE_QUEUE_MESSAGES
        socket.linger = 0
        socket.heartbeat_ivl = _HEARTBEAT_MS
        socket.heartbeat_timeout = _HEARTBEAT_TIMEOUT_MS
        # It waits twice as long after each failure, plus a random part of the first wait.
        socket.reconnect_ivl = _RECONNECT_MS
        socket.reconnect_ivl_max = _RECONNECT_MAX_MS
        socket.subscribe(topic)
        socket.connect(endpoint)
        yield messages
    finally:
        messages.close()
        socket.disable_monitor()
        monitor.close(linger=0)
        socket.close(linger=0)
