"""The SUB socket of a KV-event subscription: reconnects by itself, and says when it has."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import zmq
import zmq.asyncio

_HEARTBEAT_MS = 2000
_HEARTBEAT_TIMEOUT_MS = 6000
_RECONNECT_MS, _RECONNECT_MAX_MS = 100, 2000
_RECEIVE_QUEUE_MESSAGES = 100_000


@asynccontextmanager
async def subscriber_socket(
    context: zmq.asyncio.Context, endpoint: str, topic: str
) -> AsyncIterator[tuple[zmq.asyncio.Socket, zmq.asyncio.Socket]]:
    """(socket, monitor): what is published, and when a connection is made or lost."""
    subscriber = context.socket(zmq.SUB)
    monitor = subscriber.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
    try:
        subscriber.rcvhwm = _RECEIVE_QUEUE_MESSAGES
        subscriber.linger = 0
        subscriber.heartbeat_ivl = _HEARTBEAT_MS
        subscriber.heartbeat_timeout = _HEARTBEAT_TIMEOUT_MS
        # It waits twice as long after each failure, plus a random part of the first wait.
        subscriber.reconnect_ivl = _RECONNECT_MS
        subscriber.reconnect_ivl_max = _RECONNECT_MAX_MS
        subscriber.subscribe(topic)
        subscriber.connect(endpoint)
        yield subscriber, monitor
    finally:
        subscriber.disable_monitor()
        monitor.close(linger=0)
        subscriber.close(linger=0)


async def discard_queued(subscriber: zmq.asyncio.Socket) -> None:
    """Drops what is left of a stream we gave up on: a snapshot taken from now on has it too."""
    for _ in range(_RECEIVE_QUEUE_MESSAGES):
        if not await subscriber.poll(0):
            return
        await subscriber.recv_multipart()
