"""Mutated requests and answers, cut and mixed at random: no exception, no hang, nothing left.

`make fuzz` runs many more examples, other ones each time. What replicas are sent is read again by
h11, another parser: it must find exactly the one request, or a request could be smuggled by us.
"""

import logging
from dataclasses import dataclass

import h11
from hypothesis import given
from hypothesis import strategies as st

from router.config import LimitsConfig, TimeoutsConfig
from tests.support.data_plane import post
from tests.support.in_memory import InMemoryPlane, Transport
from tests.support.websocket import upgrade

LIMITS = LimitsConfig(max_head_bytes=600, max_body_bytes=300, max_requests_per_connection=8)
TIMEOUTS = TimeoutsConfig(
    request_head_s=3,
    request_body_s=3,
    keep_alive_s=3,
    first_byte_s=3,
    between_bytes_s=3,
    total_s=20,
)
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
REQUESTS = [
    post(body=b'{"a":1}'),
    post(b"/own", b""),
    b"GET /own HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /v1/x?y HTTP/1.1\r\nHost: a:80\r\nX-Forwarded-For: 1\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: a\r\n" + CHUNKED + b"3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n",
    b"HEAD /v1/x HTTP/1.1\r\nHost: a\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: x-a, close\r\nX-A: 1\r\n\r\n",
    b"GET http://b/v1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    post(extra=b"Expect: 100-continue\r\n"),
    post(extra=b"Connection: Upgrade\r\nUpgrade: h2c\r\n"),
    upgrade(),
    post(extra=b"traceparent: 00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01\r\ntracestate: a=1\r\n"),
]
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: X-A\r\nX-A: 1\r\n\r\n",
    SSE + CHUNKED + b"b\r\ndata: one\n\n\r\n0\r\nX: y\r\n\r\n",
    SSE + b"\r\ndata: one\n\ndata: two\n\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 103 X\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
    b"HTTP/1.1 503 X\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nabc",
]
TOKENS = [
    b"\r\n", b"\n", b"\r", b"\x00", b" ", b"\t", b":", b"0", b"-1", b"ffffffffffffffff", b"chunked",
    b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n",
    b"Upgrade: x\r\nConnection: upgrade\r\n", b"Host: b\r\n", b"HTTP/1.0", b"HTTP/1.1", b"CONNECT ",
    b"HTTP/1.1 101 X\r\n\r\n", b"\xff", b";", b",", b"#", b"0\r\n\r\n",
    b"X: " + b"y" * 400 + b"\r\n",
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes], most: int) -> list[bytes]:
    """Some of the seeds in a row, changed in a few places, in pieces."""
    data = b"".join(draw(st.lists(st.sampled_from(seeds), min_size=1, max_size=most)))
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2, 4]))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 0, 1, 2, 10])))
        data = data[:start] + draw(st.sampled_from([b"", *TOKENS])) + data[end:]
    cuts = draw(st.lists(st.integers(0, len(data)), max_size=6).map(sorted))
    return [data[i:j] for i, j in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@dataclass
class World:
    """One run: what both sides say, and in which order things happen."""

    requests: list[bytes]
    answers: list[list[bytes]]
    steps: list[str]


STEPS = ["request", "answer", "answer", "run", "run", "time", "replica closes", "replica resets",
         "client pauses", "client resumes", "drain"]  # fmt: skip
LIKELY = ["request", "answer", "run", "requests", "answers", "answers", "run"]
WORLDS = st.builds(
    World,
    requests=mutated(REQUESTS, 5),
    answers=st.lists(mutated(ANSWERS, 2), min_size=1, max_size=6),
    steps=st.lists(st.sampled_from(STEPS + LIKELY * 3), min_size=15, max_size=60),
)
GOOD_WORLDS = st.builds(
    World,
    requests=mutated(REQUESTS, 5),
    answers=st.just([[answer] for answer in ANSWERS[:3]] * 3),
    steps=st.lists(st.sampled_from(LIKELY), min_size=15, max_size=60),
)


class Run:
    """Plays a world. Each connection to a replica says the next answer, and again the next."""

    def __init__(self, world: World) -> None:
        self.plane = InMemoryPlane(LIMITS, TIMEOUTS)
        self._requests = list(world.requests)
        self._answers = world.answers
        self._world = world
        self._said = 0  # answers begun
        self._saying: dict[int, list[bytes]] = {}  # by connection: what is left of its answer
        self._heard: dict[int, int] = {}  # by connection: bytes of requests it has answered

    def play(self) -> None:
        loggers = logging.getLogger("router.dataplane")
        loggers.addHandler(self.plane)
        try:
            for step in self._world.steps:
                self._step(step)
            self._leave()
        finally:
            loggers.removeHandler(self.plane)

    def _step(self, step: str) -> None:
        plane = self.plane
        open_transports = [(i, t) for i, t in enumerate(plane.pool.transports) if not t.closing]
        if step in ("request", "requests"):
            while self._requests and plane.client.reading:
                plane.client.feed(self._requests.pop(0))
                if step == "request":
                    break
        elif step in ("answer", "answers"):
            for index, transport in open_transports:
                if transport.reading and self._asked(index, transport):
                    self._say(index, transport, whole=step == "answers")
                    break
        elif step == "run":
            plane.loop.run()
        elif step == "time":
            plane.loop.now += 2
            plane.connection.check_timeouts(plane.loop.now)
        elif step == "replica closes" and open_transports:
            open_transports[-1][1].end()
        elif step == "replica resets" and open_transports:
            open_transports[-1][1].end(ConnectionResetError())
        elif step == "client pauses" and not plane.client.lost and not plane.client.unsent_bytes:
            plane.client.unsent_bytes = 100_000
            plane.connection.pause_writing()
        elif step == "client resumes" and not plane.client.lost and plane.client.unsent_bytes:
            plane.client.unsent_bytes = 0
            plane.connection.resume_writing()
        elif step == "drain":
            plane.draining = True
            plane.connection.close_if_idle()

    def _asked(self, index: int, transport: Transport) -> bool:
        """Whether a replica has a request to answer, or has begun to."""
        return bool(self._saying.get(index)) or len(transport.sent) > self._heard.get(index, 0)

    def _say(self, index: int, transport: Transport, *, whole: bool) -> None:
        if not self._saying.get(index):
            self._heard[index] = len(transport.sent)
            self._saying[index] = list(self._answers[self._said % len(self._answers)])
            self._said += 1
        pieces = self._saying[index]
        transport.feed(pieces.pop(0))
        while whole and pieces and transport.reading:
            transport.feed(pieces.pop(0))

    def _leave(self) -> None:
        """Whatever happened, time ends it: first for the client, then for idle connections."""
        plane = self.plane
        for _ in range(60):
            plane.loop.run()
            if plane.client.lost:
                break
            plane.loop.now += 2
            plane.connection.check_timeouts(plane.loop.now)
        assert plane.client.lost, "it hangs"
        for transport in plane.pool.transports:
            transport.end()
        plane.loop.run()


def whole_requests(sent: bytes) -> int:
    """How many requests h11 reads in what a replica's connection was sent; all of it, or raises."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=100_000)
    connection.receive_data(sent)
    requests = 0
    while True:
        event = connection.next_event()
        if isinstance(event, h11.EndOfMessage):
            requests += 1
            connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            connection.send(h11.EndOfMessage())
            connection.start_next_cycle()
        elif event is h11.NEED_DATA:
            assert connection.trailing_data == (b"", False)
            assert connection.their_state is h11.IDLE
            return requests


@given(WORLDS)
def test_nothing_is_left_of_whatever_both_sides_say(world: World) -> None:
    run = Run(world)
    run.play()
    run.plane.check_over()
    attempts = sum(whole_requests(one.sent) for one in run.plane.pool.transports)
    assert run.plane.outcomes.count("answered") <= attempts


@given(GOOD_WORLDS)
def test_no_more_answers_come_than_were_asked_for(world: World) -> None:
    run = Run(world)
    run.play()
    run.plane.check_over()
    # Every answer has its request id, every request its version; one refusal may come on top.
    answers = run.plane.client.sent.count(b"\r\nx-request-id: ")
    assert answers <= b"".join(world.requests).count(b"HTTP/") + 1
    assert "crashed" not in run.plane.outcomes
