"""Tunnels at random: cut and mixed bytes, halves closed, resets, pauses, time; nothing is left.

What either side gets is what the other said, from its beginning, whatever happens in between.
"""

import logging
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from router.config import LimitsConfig, TimeoutsConfig
from tests.fuzz.test_data_plane import mutated, whole_requests
from tests.support.in_memory import InMemoryPlane, Transport
from tests.support.websocket import SWITCHED, upgrade

LIMITS = LimitsConfig(max_head_bytes=600, max_body_bytes=300)
TIMEOUTS = TimeoutsConfig(
    request_head_s=3, keep_alive_s=3, first_byte_s=3, between_bytes_s=3, total_s=30, tunnel_idle_s=5
)
HANDSHAKE = upgrade(b"/v1/x")
ANSWERS = [
    SWITCHED,
    b"HTTP/1.1 103 X\r\nLink: x\r\n\r\n" + SWITCHED,
    b"HTTP/1.1 503 X\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 403 X\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    b"HTTP/1.1 401 X\r\n\r\nno",
]
STEPS = ["client", "client", "client", "replica", "replica", "replica", "run", "run", "run", "time",
         "client ends", "replica ends", "client resets", "replica resets", "drain",
         "client full", "client takes more", "replica full", "replica takes more"]  # fmt: skip
SAID = st.lists(
    st.sampled_from([b"a", b"GET / HTTP/1.1\r\n\r\n", b"\x00\xff", b"b" * 9]), max_size=8
)


@dataclass
class World:
    """One run: what both sides say, and in which order things happen."""

    client: list[bytes]
    answers: list[list[bytes]]
    said: list[bytes]
    steps: list[str]
    halves: tuple[bool, bool]  # whether the client's, and replicas', can be closed apart


@st.composite
def worlds(draw: st.DrawFn, *, good: bool) -> World:
    sent = [HANDSHAKE] if good else draw(mutated([HANDSHAKE], 1))
    answers = st.just([SWITCHED]) if good else mutated(ANSWERS, 1)
    return World(
        client=[*sent, *draw(SAID)],
        answers=draw(st.lists(answers, min_size=1, max_size=3)),
        said=draw(SAID),
        steps=draw(st.lists(st.sampled_from(STEPS), min_size=10, max_size=60)),
        halves=draw(st.tuples(st.booleans(), st.booleans())),
    )


class Run:
    """Plays a world; every connection to a replica says the next answer, then `said`."""

    def __init__(self, world: World) -> None:
        self.plane = InMemoryPlane(LIMITS, TIMEOUTS)
        self.plane.client.halves, self.plane.pool.halves = world.halves
        self._world = world
        self._client = list(world.client)
        self._saying: dict[int, list[bytes]] = {}

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
        plane, client = self.plane, self.plane.client
        transports = plane.pool.transports
        replica = transports[-1] if transports and not transports[-1].closing else None
        if step == "run":
            plane.loop.run()
        elif step == "time":
            plane.loop.now += 2
            plane.connection.check_timeouts(plane.loop.now)
        elif step == "drain":
            plane.draining = True
            plane.connection.close_if_idle()
        elif step == "client" and self._client and client.reading and not client.ended:
            client.feed(self._client.pop(0))
        elif step == "client ends":
            client.end()
        elif step == "client resets":
            client.end(ConnectionResetError())
        elif step == "client full" and not client.lost and not client.unsent_bytes:
            client.unsent_bytes = 100_000
            plane.connection.pause_writing()
        elif step == "client takes more" and not client.lost and client.unsent_bytes:
            client.unsent_bytes = 0
            plane.connection.resume_writing()
        elif replica is not None:
            self._step_of(replica, len(transports) - 1, step)

    def _step_of(self, replica: Transport, index: int, step: str) -> None:
        if step == "replica" and replica.reading and not replica.ended and replica.sent:
            answer = self._world.answers[index % len(self._world.answers)]
            saying = self._saying.setdefault(index, [*answer, *self._world.said])
            if saying:
                replica.feed(saying.pop(0))
        elif step == "replica ends":
            replica.end()
        elif step == "replica resets":
            replica.end(ConnectionResetError())
        elif step == "replica full":
            replica._protocol.pause_writing()
        elif step == "replica takes more":
            replica._protocol.resume_writing()

    def _leave(self) -> None:
        """Whatever happened, time ends it."""
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
            transport.end()
        plane.loop.run()


@given(worlds(good=False))
def test_nothing_is_left_of_a_tunnel_whatever_happens(world: World) -> None:
    run = Run(world)
    run.play()
    run.plane.check_over()
    sent = run.plane.client.sent
    heads = [one.sent for one in run.plane.pool.transports]
    upgraded = any(b"\r\nupgrade: websocket\r\n" in head for head in heads)
    assert sent.count(b"\r\nx-request-id: ") <= 1 or not upgraded
    if 101 not in run.plane.statuses:
        for head in heads:
            assert whole_requests(head) <= 1 or not upgraded


@given(worlds(good=True))
def test_each_side_gets_what_the_other_said(world: World) -> None:
    run = Run(world)
    run.play()
    run.plane.check_over()
    head, _, got = run.plane.client.sent.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101 "):
        return
    assert b"".join(world.said).startswith(got)
    sent = run.plane.pool.transports[-1].sent.partition(b"\r\n\r\n")[2]
    assert b"".join(world.client).removeprefix(HANDSHAKE).startswith(sent)
    assert run.plane.outcomes[-1] in ("answered", "broken_stream", "client_gone", "cut_off")
