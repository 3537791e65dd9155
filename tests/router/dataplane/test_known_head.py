"""A head that comes again is taken without a parser, and nothing can tell the difference."""

import itertools
from contextlib import contextmanager
from random import Random
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProtocolError
from router.config import LimitsConfig
from router.dataplane.forwarding import Forwarding
from router.dataplane.http1 import Request, ResponseHead
from router.dataplane.known_head import KnownHead
from router.dataplane.replica_connection import ReplicaConnection
from router.dataplane.request_reader import RequestReader
from tests.support.data_plane import post

LIMITS = LimitsConfig(max_head_bytes=200, max_body_bytes=2000, max_requests_per_connection=9)
HEAD = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\nX: y\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "place"),
    [
        pytest.param(HEAD + b"0123456789ab", (58, 70), id="the-same"),
        pytest.param(HEAD + b"0123456789abGET", (58, 70), id="with-more-behind"),
        pytest.param(HEAD.replace(b"12", b"03") + b"abc", (58, 61), id="another-length"),
        pytest.param(HEAD.replace(b"12", b"3") + b"abc", (57, 60), id="fewer-digits"),
        pytest.param(HEAD.replace(b"12", b"003") + b"abc", None, id="a-longer-head"),
        pytest.param(HEAD.replace(b"12", b"0") + b"", (57, 57), id="no-body"),
        pytest.param(HEAD + b"0123456789a", None, id="not-all-of-the-body"),
        pytest.param(HEAD[:-1], None, id="not-all-of-the-head"),
        pytest.param(HEAD.replace(b"12", b""), None, id="no-length"),
        pytest.param(HEAD.replace(b"12", b"-1"), None, id="no-number"),
        pytest.param(HEAD.replace(b"12", b"+1") + b"x", None, id="a-sign"),
        pytest.param(HEAD.replace(b"12", b"1_"), None, id="not-only-digits"),
        pytest.param(HEAD.replace(b"a\r", b"b\r") + b"0123456789ab", None, id="another-host"),
        pytest.param(HEAD.replace(b"y\r", b"z\r") + b"0123456789ab", None, id="another-field"),
        pytest.param(b"", None, id="nothing"),
    ],
)
def test_a_head_is_known_if_only_its_length_differs(
    data: bytes, place: tuple[int, int] | None
) -> None:
    known = KnownHead.of(HEAD + b"0123456789ab", 12)
    assert known is not None
    assert known.body_in(data) == place


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nX-Content-Length: 12\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\n\r\nContent-Length: 12\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 13\r\n\r\n",
    ],
)
def test_a_head_without_that_length_is_not_remembered(head: bytes) -> None:
    assert KnownHead.of(head, 12) is None


class Taken:
    """Who takes requests or an answer, and writes down what is said of them."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def request_received(self, request: Request) -> None:
        told = {name: getattr(request, name) for name in Request.__slots__}
        told["headers"] = [one for one in request.headers if one[0] != b"content-length"]
        self.said.append(told)

    def request_refused(self, request: Request, error: ProtocolError) -> None:
        self.request_received(request)
        self.said.append((type(error), error.message))

    def body_awaited(self) -> None:
        self.said.append("continue")

    def answer_head(self, head: ResponseHead) -> None:
        told = {name: getattr(head, name) for name in ResponseHead.__slots__}
        told["headers"] = [one for one in head.headers if one[0] != b"content-length"]
        self.said.append(told)

    def answer_bytes(self, data: bytes, framed: bytes = b"") -> None:
        self.said.append((data, framed))

    def answer_ended(self) -> None:
        self.said.append("ended")

    def answer_broken(self, reason: str) -> None:
        self.said.append(reason)

    def connection_idle(self, connection: ReplicaConnection) -> None:
        self.said.append("idle")

    def connection_gone(self, connection: ReplicaConnection) -> None:
        self.said.append("gone")


@contextmanager
def remembering(remembers: bool):  # type: ignore[no-untyped-def]
    with mock.patch.object(KnownHead, "of", KnownHead.of if remembers else lambda *_: None):
        yield


def requests_in(pieces: list[bytes], *, remembers: bool) -> list[Any]:
    taken, numbers = Taken(), itertools.count()
    forwarding = Forwarding("192.0.2.1", b"http", Random(1))
    with remembering(remembers):
        reader = RequestReader(
            taken, LIMITS, forwarding, lambda: 0.0, lambda: b"%d" % next(numbers)
        )
        for piece in pieces:
            reader.feed(piece)
            taken.said.append((reader.receiving, reader.head_done, reader.ended, reader.surplus))
    return taken.said


REQUESTS = [
    post(body=b'{"a":1}'),
    post(body=b'{"a":12}'),
    post(body=b"x" * 10),
    post(body=b"x" * 1234),
    post(body=b"x" * 2001),
    post(body=b""),
    post(b"/v1/y", b"{}"),
    post(extra=b"X-Request-Id: abc\r\n"),
    post(extra=b"Expect: 100-continue\r\n"),
    post(extra=b"Connection: Upgrade\r\nUpgrade: h2c\r\n"),
    post(extra=b"Connection: close\r\n"),
    post(extra=b"Connection: x-a\r\nX-A: 1\r\n"),
    post(extra=b"Tracestate: a=1\r\n"),
    post(extra=b"X-Forwarded-For: 192.0.2.7\r\n"),
    post(extra=b"Content-Length: 2\r\n"),
    post(extra=b"Transfer-Encoding: chunked\r\n"),
    post(extra=b"X: " + b"y" * 136 + b"\r\n"),
    post(body=b"x" * 10, extra=b"X: " + b"y" * 136 + b"\r\n"),
    b"GET /v1/x HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"\r\n",
    b"nonsense",
]


@given(st.lists(st.sampled_from(REQUESTS), max_size=12), st.data())
def test_requests_are_the_same_as_without_remembering(
    requests: list[bytes], data: st.DataObject
) -> None:
    often = [one for one in requests for _ in range(data.draw(st.integers(1, 3)))]
    together = data.draw(st.booleans())
    whole = b"".join(often)
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=4).map(sorted))
    pieces = often
    if together:
        pieces = [whole[i:j] for i, j in itertools.pairwise([0, *cuts, len(whole)])]
    assert requests_in(pieces, remembers=True) == requests_in(pieces, remembers=False)


def answers_in(answers: list[list[bytes]], *, remembers: bool, head_only: list[bool]) -> list[Any]:
    taken = Taken()
    with remembering(remembers):
        connection = ReplicaConnection(taken, 200)
        transport = mock.Mock()
        transport.get_write_buffer_size.return_value = 0
        connection.connection_made(transport)
        for pieces, only_head in zip(answers, head_only, strict=True):
            if "gone" in taken.said or taken.said[-1:] not in ([], ["ended"]):
                break
            connection.send(b"", b"", taken, head_only=only_head)
            for piece in pieces:
                if connection._sink is not None:
                    connection.data_received(piece)
    return taken.said


def answer(body: bytes, status: bytes = b"200 OK", extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, extra, len(body), body)


ANSWERS = [
    answer(b"abc"),
    answer(b"abc"),
    answer(b"defgh"),
    answer(b""),
    answer(b"x" * 120),
    answer(b"abc", extra=b"X: " + b"y" * 150 + b"\r\n"),
    answer(b"x" * 120, extra=b"X: " + b"y" * 150 + b"\r\n"),
    answer(b"abc", b"404 Not Found"),
    answer(b"abc", b"204 No Content"),
    answer(b"abc", extra=b"Connection: close\r\n"),
    answer(b"abc", extra=b"Connection: x-a\r\nX-A: 1\r\n"),
    answer(b"data: 1\n\n", extra=b"Content-Type: text/event-stream\r\n"),
    b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"abc"),
    answer(b"abc") + answer(b"abc"),
    b"HTTP/1.1 200 OK\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
]


@given(st.lists(st.sampled_from(ANSWERS), max_size=10), st.data())
def test_answers_are_the_same_as_without_remembering(
    answers: list[bytes], data: st.DataObject
) -> None:
    often = [one for one in answers for _ in range(data.draw(st.integers(1, 3)))]
    head_only = [data.draw(st.integers(0, 9)) == 0 for _ in often]
    cut = [
        [one] if data.draw(st.booleans()) else [one[:at], one[at:]]
        for one, at in ((one, data.draw(st.integers(1, len(one)))) for one in often)
    ]
    assert answers_in(cut, remembers=True, head_only=head_only) == answers_in(
        cut, remembers=False, head_only=head_only
    )


def test_what_comes_again_is_not_parsed() -> None:
    taken = Taken()
    reader = RequestReader(
        taken, LIMITS, Forwarding("", b"http", Random(1)), lambda: 0.0, lambda: b"1"
    )
    parse = RequestReader._parse
    with mock.patch.object(RequestReader, "_parse", autospec=True, side_effect=parse) as parse:
        reader.feed(post())
        reader.feed(post() + post())
        assert parse.call_count == 1
        reader.feed(post(extra=b"X: 1\r\n"))
        assert parse.call_count == 2
    assert len(taken.said) == 4
