"""What a replica learns of client and trace, and which fields stop at the router."""

import re
from random import Random

import pytest

from router.dataplane.forwarding import Forwarding, valid_trace_parent
from router.dataplane.http1 import Header
from router.dataplane.request_fields import RequestFields, read_request_fields
from tests.support.data_plane import Call, ScriptedReplica, data_plane, post

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
FRESH = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-00")


async def answer(call: Call) -> None:
    await call.json()


async def received(extra: bytes) -> dict[bytes, list[bytes]]:
    """The fields a replica gets of a request with these ones more."""
    replica = ScriptedReplica("r0", answer)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        await client.send(post(extra=extra))
        await client.response()
    fields: dict[bytes, list[bytes]] = {}
    for line in replica.calls[0].head.split(b"\r\n")[1:-2]:
        name, _, value = line.partition(b": ")
        fields.setdefault(name, []).append(value)
    return fields


async def test_a_replica_learns_who_asked_how_and_whom() -> None:
    fields = await received(b"")
    assert fields[b"x-forwarded-for"] == [b"127.0.0.1"]
    assert fields[b"x-forwarded-proto"] == [b"http"]
    assert fields[b"x-forwarded-host"] == [b"router"]
    assert fields[b"host"] != [b"router"]


FORWARDED = {
    "addresses are appended to": (
        b"X-Forwarded-For: 10.0.0.1, 10.0.0.2\r\n",
        {b"x-forwarded-for": b"10.0.0.1, 10.0.0.2, 127.0.0.1"},
    ),
    "lines of addresses become one": (
        b"X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-For: 10.0.0.2\r\n",
        {b"x-forwarded-for": b"10.0.0.1, 10.0.0.2, 127.0.0.1"},
    ),
    "the first proto stays": (b"X-Forwarded-Proto: https\r\n", {b"x-forwarded-proto": b"https"}),
    "the first host stays": (b"X-Forwarded-Host: api\r\n", {b"x-forwarded-host": b"api"}),
    "hop-by-hop ones do not count": (
        b"Connection: X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host\r\n"
        b"X-Forwarded-For: 1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: api\r\n",
        {b"x-forwarded-for": b"127.0.0.1", b"x-forwarded-proto": b"http",
         b"x-forwarded-host": b"router"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("extra", "expected"), FORWARDED.values(), ids=FORWARDED)
async def test_what_proxies_before_us_said_is_kept(
    extra: bytes, expected: dict[bytes, bytes]
) -> None:
    fields = await received(extra)
    assert {name: fields[name] for name in expected} == {
        name: [value] for name, value in expected.items()
    }


async def test_a_trace_goes_on_unchanged() -> None:
    fields = await received(
        b"traceparent: " + TRACE + b"\r\ntracestate: a=1\r\ntracestate: b=2\r\n"
    )
    assert fields[b"traceparent"] == [TRACE]
    assert fields[b"tracestate"] == [b"a=1", b"b=2"]


NO_TRACES = {
    "none": b"",
    "one that cannot be read": b"traceparent: 00-xyz\r\ntracestate: a=1\r\n",
    "two": b"traceparent: %b\r\ntraceparent: %b\r\ntracestate: a=1\r\n" % (TRACE, TRACE),
    "one for this hop only": b"Connection: traceparent\r\ntraceparent: " + TRACE + b"\r\n",
    "a state without a parent": b"tracestate: a=1\r\n",
}


@pytest.mark.parametrize("extra", NO_TRACES.values(), ids=NO_TRACES)
async def test_without_a_readable_trace_a_new_one_begins(extra: bytes) -> None:
    fields = await received(extra)
    (parent,) = fields[b"traceparent"]
    assert FRESH.fullmatch(parent)
    assert TRACE[3:35] not in parent
    assert b"tracestate" not in fields


PARENTS = {
    "sampled": (TRACE, True),
    "not sampled": (TRACE[:-2] + b"00", True),
    "a later version": (b"cc" + TRACE[2:], True),
    "a later version with more": (b"cc" + TRACE[2:] + b"-more", True),
    "a later version that runs on": (b"cc" + TRACE[2:] + b"more", False),
    "version 00 with more": (TRACE + b"-more", False),
    "version ff": (b"ff" + TRACE[2:], False),
    "no trace": (b"00-" + b"0" * 32 + TRACE[35:], False),
    "no parent": (TRACE[:36] + b"0" * 16 + b"-01", False),
    "capitals": (TRACE.upper(), False),
    "too short": (TRACE[:-1], False),
    "a blank": (b" " + TRACE, False),
    "nothing": (b"", False),
}


@pytest.mark.parametrize(("value", "valid"), PARENTS.values(), ids=PARENTS)
def test_a_traceparent_is_valid_as_the_w3c_says(value: bytes, valid: bool) -> None:
    assert valid_trace_parent(value) == valid


def fields_of(*headers: Header) -> RequestFields:
    return read_request_fields([(b"host", b"a"), *headers], "1.1")


def test_no_two_requests_share_a_trace() -> None:
    forwarding = Forwarding("::1", b"https", Random(1))
    made = {forwarding.fields(fields_of()) for _ in range(100)}
    assert len(made) == 100
    assert all(b"x-forwarded-for: ::1\r\nx-forwarded-proto: https\r\n" in one for one in made)


def test_a_connection_may_serve_many_hosts() -> None:
    forwarding = Forwarding("::1", b"http", Random(1))
    for host in (b"a", b"b", b"a"):
        fields = read_request_fields([(b"host", host)], "1.1")
        assert b"x-forwarded-host: " + host + b"\r\n" in forwarding.fields(fields)


async def test_a_request_tried_twice_is_one_trace() -> None:
    async def busy(call: Call) -> None:
        await call.json(status=b"503 X")

    replicas = ScriptedReplica("r0", busy), ScriptedReplica("r1", answer)
    async with data_plane(*replicas) as plane:
        client = await plane.connect()
        await client.send(post())
        await client.response()
    parents = [re.findall(rb"traceparent: (.*)\r\n", one.calls[0].head) for one in replicas]
    assert parents[0] == parents[1] != []


HOP_BY_HOP = b"Connection: close, X-One,x-two ,\tX-Three\r\nX-ONE: 1\r\nx-two: 2\r\nX-Three: 3\r\n"


async def test_fields_that_connection_names_stop_here_in_both_directions() -> None:
    async def script(call: Call) -> None:
        await call.send(
            b"HTTP/1.1 200 OK\r\n" + HOP_BY_HOP + b"Connection: X-Four\r\nX-Four: 4\r\n"
            b"X-Five: 5\r\nContent-Length: 0\r\n\r\n"
        )

    fields = await received(HOP_BY_HOP + b"Connection: X-Four\r\nX-Four: 4\r\nX-Five: 5\r\n")
    assert fields[b"x-five"] == [b"5"]
    assert not {b"connection", b"x-one", b"x-two", b"x-three", b"x-four"} & fields.keys()
    async with data_plane(ScriptedReplica("r0", script)) as plane:
        client = await plane.connect()
        await client.send(post())
        head = await client.head()
    assert b"x-five: 5" in head
    assert not re.search(rb"x-(one|two|three|four)", head.lower())
