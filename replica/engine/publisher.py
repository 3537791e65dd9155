"""KV events and load reports on ZMQ PUB sockets, and the replay of past event batches.

Publishing happens in the engine's own loop: a PUB socket never blocks (a subscriber that is too
slow loses messages, sees the gap in the sequence numbers and asks for a replay). Replays run in a
thread of their own, since one may send the whole buffer.

    engine loop ──publish──▶ PUB ─────────▶ subscribers
                    └─▶ buffer (bounded) ◀── replay thread ◀─▶ ROUTER ◀── [b"", from this seq]
"""

import logging
import threading
from collections import deque

import zmq

from protocol.kv_events import (
    END_OF_REPLAY,
    EventBatch,
    KvEvent,
    MalformedEvents,
    decode_sequence_number,
    encode_batch,
    encode_sequence_number,
)
from protocol.load_report import LoadReport, encode_load_report
from replica.config import KvEvents, LoadReports

_log = logging.getLogger(__name__)

_SEND_HIGH_WATER_MARK = 100_000
"""Messages a slow subscriber may lag before it loses some: vLLM's default."""


class EventPublisher:
    """Numbers and publishes batches of KV events; `publish` never blocks.

    `last_seq` counts batches whether or not anybody can subscribe, so that a snapshot always names
    the state it shows; None before the first.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], config: KvEvents | None) -> None:
        """Binds the sockets `config` names; None publishes nothing.

        Raises:
            OSError: an address cannot be bound; the message names it.
        """
        self.last_seq: int | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._replay: _ReplayServer | None = None
        self._topic = b""
        if config is None:
            return
        self._topic = config.topic.encode()
        self._socket = bind(context, zmq.PUB, config.endpoint, "kv_events.endpoint")
        if config.replay is not None:
            try:
                self._replay = _ReplayServer(context, config.replay, self._topic, config)
            except OSError:
                self._socket.close(linger=0)
                raise

    def publish(self, events: list[KvEvent], now_s: float) -> None:
        """Sends `events` as the next batch; nothing if there are none.

        Args:
            now_s: Seconds since the epoch.
        """
        if not events:
            return
        seq = 0 if self.last_seq is None else self.last_seq + 1
        self.last_seq = seq
        if self._socket is None:
            return
        payload = encode_batch(EventBatch(ts=now_s, events=events))
        if self._replay is not None:
            self._replay.remember(seq, payload)
        self._socket.send_multipart([self._topic, encode_sequence_number(seq), payload])

    def close(self) -> None:
        if self._replay is not None:
            self._replay.close()
        if self._socket is not None:
            self._socket.close(linger=0)


class _ReplayServer:
    """Answers replay requests from a bounded buffer, in its own thread."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        topic: bytes,
        config: KvEvents,
    ) -> None:
        self._topic = topic
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=config.buffer_steps)
        self._lock = threading.Lock()
        # A peer gets the whole buffer or nothing: its queue must hold every batch and the end.
        high_water_mark = max(_SEND_HIGH_WATER_MARK, 2 * (config.buffer_steps + 1))
        self._socket = bind(context, zmq.ROUTER, endpoint, "kv_events.replay", high_water_mark)
        stop_endpoint = f"inproc://replay-stop-{id(self)}"
        self._stop_receiver = context.socket(zmq.PAIR)
        self._stop_receiver.bind(stop_endpoint)
        self._stop_sender = context.socket(zmq.PAIR)
        self._stop_sender.connect(stop_endpoint)
        self._thread = threading.Thread(target=self._serve, name="kv-replay", daemon=True)
        self._thread.start()

    def remember(self, seq: int, payload: bytes) -> None:
        with self._lock:
            self._buffer.append((seq, payload))

    def close(self) -> None:
        self._stop_sender.send(b"")
        self._thread.join()
        for socket in (self._stop_sender, self._stop_receiver, self._socket):
            socket.close(linger=0)

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._stop_receiver, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._stop_receiver in ready:
                return
            self._answer(self._socket.recv_multipart())

    def _answer(self, frames: list[bytes]) -> None:
        try:
            identity, empty, start = frames
            first = decode_sequence_number(start)
        except (ValueError, MalformedEvents):
            _log.warning("a replay request of %d frames was ignored", len(frames))
            return
        with self._lock:
            batches = [one for one in self._buffer if one[0] >= first]
        for seq, payload in batches:
            self._socket.send_multipart(
                [identity, empty, self._topic, encode_sequence_number(seq), payload]
            )
        self._socket.send_multipart([identity, empty, b"", END_OF_REPLAY, b""])


class LoadPublisher:
    """Publishes a load report every `interval_s`, from the engine's loop; never blocks."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], config: LoadReports) -> None:
        """Raises OSError when the address cannot be bound; the message names it."""
        self._interval_s = config.interval_s
        self._next_s = 0.0
        self._socket = bind(context, zmq.PUB, config.endpoint, "load_reports.endpoint")

    def wait_s(self, now_s: float) -> float:
        """Seconds until the next report is due, at least 0."""
        return max(0.0, self._next_s - now_s)

    def publish(self, report: LoadReport, now_s: float) -> None:
        self._next_s = now_s + self._interval_s
        self._socket.send(encode_load_report(report))

    def close(self) -> None:
        self._socket.close(linger=0)


def bind(
    context: zmq.Context[zmq.Socket[bytes]],
    kind: int,
    endpoint: str,
    field: str,
    high_water_mark: int = _SEND_HIGH_WATER_MARK,
) -> zmq.Socket[bytes]:
    """A bound socket.

    Raises:
        OSError: it cannot be bound; the message names `field` and `endpoint`.
    """
    socket = context.socket(kind)
    socket.set(zmq.SNDHWM, high_water_mark)
    socket.set(zmq.LINGER, 0)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        socket.close(linger=0)
        reason = zmq.strerror(error.errno or 0)
        raise OSError(f"{field}: cannot bind {endpoint}: {reason}") from error
    return socket
