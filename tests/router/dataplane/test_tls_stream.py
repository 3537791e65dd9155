"""Both ends of a TLS stream without sockets: whatever the cuts, bytes and ends arrive in order."""

import asyncio
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.dataplane.tls import TlsFailed, TlsSide, TlsStream
from tests.support.certificates import Authority

AUTHORITY = Authority()
SERVER, CLIENT = AUTHORITY.listener(), AUTHORITY.towards_replicas()


class Wire(asyncio.Transport):
    """Below a stream: keeps what it writes until it is carried over."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.ended = self.closed = self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert data, "an empty write"
        assert not self.ended
        assert not self.closed
        self.sent += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = self.closed = True


class App(asyncio.Protocol):
    """Above a stream: notes what it is told."""

    def __init__(self, *, stays_half_open: bool = False) -> None:
        self.received = bytearray()
        self.told: list[str] = []
        self.lost: Exception | None = None
        self._stays_half_open = stays_half_open

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        assert self.told == ["made"]
        assert data
        self.received += data

    def eof_received(self) -> bool:
        self.told.append("eof")
        return self._stays_half_open

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append("lost")
        self.lost = exc


class Owner:
    def __init__(self) -> None:
        self.told: list[Exception | str | None] = []

    def handshake_begun(self, stream: TlsStream) -> None:
        self.told.append("begun")

    def handshake_over(self, stream: TlsStream, failure: Exception | None) -> None:
        self.told.append(failure)


class End:
    """One side: a stream between an app and a wire."""

    def __init__(self, side: TlsSide, *, stays_half_open: bool = False) -> None:
        self.app, self.wire, self.owner = App(stays_half_open=stays_half_open), Wire(), Owner()
        self.stream = TlsStream(self.app, side, self.owner, handshake_timeout_s=10.0)

    def begin(self) -> None:
        self.stream.connection_made(self.wire)

    def deliver(self, data: bytes) -> None:
        if not self.wire.closed:
            self.stream.data_received(data)


class Pair:
    """A client and a server, joined; `cut` says how many bytes the wire carries at once."""

    def __init__(self, cut: Callable[[], int], **options: bool) -> None:
        self.server, self.client = End(SERVER, **options), End(CLIENT, **options)
        self._cut = cut
        self.server.begin()
        self.client.begin()
        self.carry()

    def carry(self) -> None:
        """Until nothing is left on the wires."""
        while self.server.wire.sent or self.client.wire.sent:
            for source, target in (self.server, self.client), (self.client, self.server):
                size = self._cut()
                piece = bytes(source.wire.sent[:size])
                del source.wire.sent[:size]
                if piece:
                    target.deliver(piece)

    def lose(self) -> None:
        for end in (self.server, self.client):
            end.stream.connection_lost(None)


def in_loop(run: Callable[[], None]) -> None:
    """The streams set timers, and nothing else."""

    async def inside() -> None:
        run()

    asyncio.run(inside())


WRITES = st.lists(
    st.tuples(st.booleans(), st.integers(0, 70_000) | st.integers(0, 20)), max_size=12
)


@settings(max_examples=60, deadline=None)
@given(
    writes=WRITES, seed=st.integers(0), closer=st.booleans(), largest=st.sampled_from([30, 9999])
)
def test_bytes_and_ends_arrive_in_order_however_the_wire_is_cut(
    writes: list[tuple[bool, int]], seed: int, closer: bool, largest: int
) -> None:
    random = Random(seed)

    def run() -> None:
        pair = Pair(lambda: random.randint(1, largest))
        sent = {True: bytearray(), False: bytearray()}
        ends = {True: pair.server, False: pair.client}
        for from_server, size in writes:
            piece = random.randbytes(size)
            ends[from_server].stream.write(piece)
            sent[from_server] += piece
            if random.random() < 0.5:
                pair.carry()
        pair.carry()
        ends[closer].stream.write(b"last")
        sent[closer] += b"last"
        ends[closer].stream.close()
        pair.carry()
        pair.lose()
        for from_server in (True, False):
            assert ends[not from_server].app.received == sent[from_server]
            assert ends[from_server].owner.told == ["begun", None]
        assert ends[not closer].app.told == ["made", "eof", "lost"]
        assert ends[closer].app.told == ["made", "lost"]
        assert pair.server.app.lost is pair.client.app.lost is None

    in_loop(run)


@given(kept=st.integers(0, 400))
@settings(max_examples=60, deadline=None)
def test_a_stream_that_is_cut_anywhere_before_its_end_is_not_taken_for_whole(kept: int) -> None:
    def run() -> None:
        pair = Pair(lambda: 10_000)
        pair.server.stream.write(b"a" * 100)
        pair.server.stream.write(b"b" * 100)
        pair.server.stream.close()
        wire = bytes(pair.server.wire.sent)
        whole = kept >= len(wire)
        if wire[:kept]:
            pair.client.deliver(wire[:kept])
        if not pair.client.wire.closed:
            assert not pair.client.stream.eof_received()
        pair.client.stream.connection_lost(None)
        app = pair.client.app
        assert len(app.received) in ((200,) if whole else (0, 100, 200))
        assert isinstance(app.lost, TlsFailed) is not whole
        assert ("eof" in app.told) is whole

    in_loop(run)


@pytest.mark.parametrize("at", [0, 1, 2], ids=["first", "second", "third"])
def test_a_record_that_was_tampered_with_ends_the_stream(at: int) -> None:
    def run() -> None:
        pair = Pair(lambda: 10_000)
        for _ in range(3):
            pair.client.stream.write(b"hello")
        record = len(pair.client.wire.sent) // 3
        pair.client.wire.sent[at * record + record // 2] ^= 1
        pair.carry()
        server = pair.server
        assert server.app.received == b"hello" * at
        assert server.wire.aborted
        server.stream.connection_lost(None)
        assert str(server.app.lost) == "TLS: decryption failed or bad record mac"

    in_loop(run)


def test_one_half_can_be_closed_and_the_other_go_on() -> None:
    def run() -> None:
        pair = Pair(lambda: 100, stays_half_open=True)
        pair.client.stream.write(b"question")
        pair.client.stream.write_eof()
        pair.client.stream.write(b"too late")
        pair.carry()
        server, client = pair.server, pair.client
        assert server.app.received == b"question"
        assert server.app.told == ["made", "eof"]
        assert client.wire.ended
        assert server.stream.eof_received()  # TCP's, which says nothing more
        server.stream.write(b"answer" * 10_000)
        server.stream.close()
        pair.carry()
        assert client.app.received == b"answer" * 10_000
        assert client.app.told == ["made", "eof"]
        assert not client.wire.closed

    in_loop(run)


def test_what_comes_after_the_peers_end_is_not_kept() -> None:
    def run() -> None:
        pair = Pair(lambda: 100, stays_half_open=True)
        pair.client.stream.write_eof()
        pair.carry()
        for _ in range(10):
            pair.server.deliver(bytes(1000))
        assert pair.server.stream._incoming.pending == 0

    in_loop(run)


def test_after_close_or_abort_nothing_is_sent() -> None:
    def run() -> None:
        for end in ("close", "abort"):
            pair = Pair(lambda: 100)
            getattr(pair.server.stream, end)()
            sent = len(pair.server.wire.sent)
            pair.server.stream.write(b"late")
            pair.server.stream.write_eof()
            pair.server.stream.pause_reading()
            pair.server.stream.close()
            assert len(pair.server.wire.sent) == sent
            assert (sent == 0) == (end == "abort")

    in_loop(run)
