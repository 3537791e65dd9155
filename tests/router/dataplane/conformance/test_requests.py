"""Valid requests in every form and cut at every byte: the replica gets the same, in order.

Sources: RFC 9112 §2.2 (empty lines), §3.2 (targets), §7.1 (chunks), §9.3 (persistence).
"""

import re
from dataclasses import dataclass

import pytest

from router.config import LimitsConfig
from router.dataplane.client_connection import ClientConnection
from tests.support.data_plane import Call, DataPlane, Peer, ScriptedReplica, data_plane, post
from tests.support.reads import reads_of, splits

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
GET = b"GET /v1/x HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass
class Case:
    """What a client sends, and what the replica must have got: first lines, fields, bodies."""

    sent: bytes
    got: list[tuple[bytes, bytes]]
    fields: tuple[bytes, ...] = ()
    not_fields: tuple[bytes, ...] = ()
    continues: bool = False
    closes: bool = False


X = b"POST /v1/x HTTP/1.1"
CASES = {
    "a body by length": Case(post(body=b'{"a":1}'), [(X, b'{"a":1}')]),
    "a body of length 0": Case(post(body=b""), [(X, b"")], (b"content-length: 0",)),
    "a body that looks like a request": Case(post(body=GET), [(X, GET)]),
    "chunks": Case(CHUNKED + b"3\r\n[1,\r\nA\r\n2,3,4,5,6]\r\n0\r\n\r\n", [(X, b"[1,2,3,4,5,6]")]),
    "chunks with extensions and trailers": Case(
        CHUNKED + b'1;a=b\r\n[\r\n1;c="d;e"\r\n]\r\n0;f\r\nX-Sum: 1\r\nHost: evil\r\n\r\n',
        [(X, b"[]")],
        not_fields=(b"x-sum", b"evil", b"trailer"),
    ),
    "chunk sizes in either case, with zeros": Case(
        CHUNKED + b"00a\r\n0123456789\r\n0B\r\n0123456789a\r\n000\r\n\r\n",
        [(X, b"01234567890123456789a")],
    ),
    "chunked in capitals": Case(
        CHUNKED.replace(b"chunked", b"CHUNKED") + b"1\r\n1\r\n0\r\n\r\n", [(X, b"1")]
    ),
    "no body": Case(GET, [(b"GET /v1/x HTTP/1.1", b"")], not_fields=(b"content-length",)),
    "HEAD": Case(b"HEAD /v1/x HTTP/1.1\r\nHost: a\r\n\r\n", [(b"HEAD /v1/x HTTP/1.1", b"")]),
    "OPTIONS": Case(
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", [(b"OPTIONS * HTTP/1.1", b"")]
    ),
    "DELETE with a body": Case(
        b"DELETE /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",
        [(b"DELETE /v1/x HTTP/1.1", b"hi")],
    ),
    "100-continue": Case(
        post(body=b"[1]", extra=b"Expect: 100-continue\r\n"),
        [(X, b"[1]")],
        not_fields=(b"expect",),
        continues=True,
    ),
    "two, pipelined": Case(
        post(b"/v1/1", b"[1]") + post(b"/v1/2", b"[2]"),
        [(b"POST /v1/1 HTTP/1.1", b"[1]"), (b"POST /v1/2 HTTP/1.1", b"[2]")],
    ),
    "HTTP/1.0": Case(b"GET /v1/x HTTP/1.0\r\n\r\n", [(b"GET /v1/x HTTP/1.1", b"")], closes=True),
    "HTTP/1.0 that stays": Case(
        b"GET /v1/x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        [(b"GET /v1/x HTTP/1.1", b"")],
        not_fields=(b"connection",),
    ),
    "connection: close": Case(
        post(extra=b"Connection: close\r\n"), [(X, b"{}")], not_fields=(b"close",), closes=True
    ),
    "an absolute target": Case(
        b"GET http://other:81/v1/x?y=/?&z HTTP/1.1\r\nHost: a\r\n\r\n",
        [(b"GET /v1/x?y=/?&z HTTP/1.1", b"")],
        (b"x-forwarded-host: other:81",),
    ),
    "an absolute target without a path": Case(
        b"GET HTTP://o?q HTTP/1.1\r\nHost: a\r\n\r\n", [(b"GET /?q HTTP/1.1", b"")]
    ),
    "names in any case, odd values": Case(
        b"GET /v1/x HTTP/1.1\r\nHOST:a\r\nx-lower: 1\r\nX-UPPER:2\r\nX-Empty:\r\n"
        b"X-Tab: a\tb  c\r\nX-Text: caf\xc3\xa9 \xff\r\nX-1!#$%&'*+-.^_`|~: token\r\n\r\n",
        [(b"GET /v1/x HTTP/1.1", b"")],
        (
            b"x-lower: 1", b"x-upper: 2", b"x-empty: ", b"x-tab: a\tb  c",
            b"x-text: caf\xc3\xa9 \xff", b"x-1!#$%&'*+-.^_`|~: token",
        ),
    ),
    "empty lines first": Case(b"\r\n\r\n" + post(), [(X, b"{}")]),
    "an empty Host": Case(b"GET /v1/x HTTP/1.1\r\nHost:\r\n\r\n", [(b"GET /v1/x HTTP/1.1", b"")]),
    "a Host by address": Case(
        b"GET /v1/x HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
        [(b"GET /v1/x HTTP/1.1", b"")],
        (b"x-forwarded-host: [::1]:80",),
    ),
    "an upgrade with a body": Case(
        post(body=b"[1]", extra=b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
             b"HTTP2-Settings: AAM\r\n"),
        [(X, b"[1]")],
        not_fields=(b"upgrade", b"http2-settings"),
    ),
    "an upgrade, pipelined": Case(
        post(b"/v1/1", b"[1]", b"Connection: Upgrade\r\nUpgrade: h2c\r\n") + post(b"/v1/2", b"[2]"),
        [(b"POST /v1/1 HTTP/1.1", b"[1]"), (b"POST /v1/2 HTTP/1.1", b"[2]")],
    ),
}  # fmt: skip
TWENTY = Case(
    b"".join(b"GET /v1/%d HTTP/1.1\r\nHost:a\r\n\r\n" % index for index in range(20)),
    [(b"GET /v1/%d HTTP/1.1" % index, b"") for index in range(20)],
)
# What differs from one request to the next, however equal they are.
_OWN = re.compile(rb"(x-request-id: generated|traceparent: 00)-[0-9a-f-]+")


async def echo(call: Call) -> None:
    """Says what came: by its length, so that a client can tell answers apart."""
    first_line = call.head.partition(b"\r\n")[0]
    if first_line.startswith(b"HEAD "):
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")
    else:
        await call.json(first_line + b"|" + call.body)


async def read_answers(client: Peer, case: Case) -> None:
    if case.continues:
        assert await client.head() == CONTINUE
    for first_line, body in case.got:
        if first_line.startswith(b"HEAD "):
            head = await client.head()
        else:
            head, answer = await client.response()
            assert answer == first_line + b"|" + body
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert (b"connection: close" in head) == case.closes
    if case.closes:
        assert await client.rest() == b""


def check_calls(calls: list[Call], case: Case, heads: list[bytes]) -> None:
    assert [(c.head.partition(b"\r\n")[0], c.body) for c in calls] == case.got
    assert [_OWN.sub(b"", call.head) for call in calls] == heads
    for call in calls:
        lines = call.head.split(b"\r\n")
        assert all(field in lines for field in case.fields), call.head
        assert not [one for one in case.not_fields if one in call.head.lower()]


async def send_in_all_splits(plane: DataPlane, replica: ScriptedReplica, case: Case) -> None:
    with reads_of(ClientConnection) as reads:
        client = await plane.connect()
        await reads.send(client.send, [case.sent])
        await read_answers(client, case)
        heads = [_OWN.sub(b"", call.head) for call in replica.calls]
        check_calls(replica.calls, case, heads)
        for pieces in splits(case.sent):
            replica.calls.clear()
            if case.closes:
                client = await plane.connect()
            await reads.send(client.send, pieces)
            await read_answers(client, case)
            check_calls(replica.calls, case, heads)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_a_request_is_the_same_however_it_is_cut(case: Case) -> None:
    replica = ScriptedReplica("r0", echo)
    async with data_plane(replica) as plane:
        await send_in_all_splits(plane, replica, case)


async def test_twenty_pipelined_requests_are_answered_in_order_however_they_are_cut() -> None:
    replica = ScriptedReplica("r0", echo)
    limits = LimitsConfig(max_requests_per_connection=1_000_000)
    async with data_plane(replica, limits=limits) as plane:
        await send_in_all_splits(plane, replica, TWENTY)


async def test_a_large_body_arrives_whole_in_pieces_of_any_size() -> None:
    body = bytes(range(256)) * 4096
    pieces = b"".join(
        b"%x\r\n%b\r\n" % (min(size, len(body) - start), body[start : start + size])
        for start, size in zip(range(0, len(body), 65536), [65536] * 16, strict=True)
    )
    replica = ScriptedReplica("r0", echo)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        for sent in (post(body=body), CHUNKED + pieces + b"0\r\n\r\n"):
            client.writer.write(sent)
            assert (await client.response())[1] == X + b"|" + body


async def test_a_body_in_chunks_of_one_byte_is_put_together() -> None:
    replica = ScriptedReplica("r0", echo)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        client.writer.write(CHUNKED + b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n")
        assert (await client.response())[1] == X + b"|" + b"x" * 50_000
