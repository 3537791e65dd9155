"""HTTP/1.1 as clients really speak it, in raw bytes."""

import pytest

from router.config import LimitsConfig
from tests.support.data_plane import Call, ScriptedReplica, data_plane, post


async def echo(call: Call) -> None:
    await call.json(call.body or b"{}")


async def stream(call: Call) -> None:
    await call.start_stream()
    for text in (b"one", b"two", b"[DONE]"):
        await call.event(text)
    await call.end_stream()


async def test_a_request_and_its_answer_pass_through() -> None:
    replica = ScriptedReplica("r0", echo)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        await client.send(post(b"/v1/x?y=1", b'{"a":1}', b"X-Mine: Yes\r\nX-Request-Id: abc\r\n"))
        head, body = await client.response()
    assert body == b'{"a":1}'
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"x-request-id: abc\r\n" in head
    assert b"x-warmroute-replica: r0\r\n" in head
    assert b"x-warmroute-matched-tokens: 7\r\n" in head
    sent = replica.calls[0].head
    assert sent.startswith(b"POST /v1/x?y=1 HTTP/1.1\r\n")
    assert b"x-mine: Yes\r\n" in sent
    assert b"x-request-id: abc\r\n" in sent


async def test_hop_by_hop_fields_stop_at_the_router() -> None:
    async def script(call: Call) -> None:
        await call.send(
            b"HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n"
            b"Content-Length: 0\r\nX-End: 2\r\n\r\n"
        )

    replica = ScriptedReplica("r0", script)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        await client.send(
            post(extra=b"Connection: keep-alive, X-Secret\r\nX-Secret: 1\r\nTE: trailers\r\n")
        )
        head = await client.head()
    sent = replica.calls[0].head.lower()
    assert b"x-secret" not in sent
    assert b"te:" not in sent
    assert b"connection" not in sent
    assert b"x-hop" not in head.lower()
    assert b"timeout=5" not in head
    assert b"x-end: 2" in head


async def test_a_connection_serves_many_requests_on_both_sides() -> None:
    replica = ScriptedReplica("r0", echo)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        for index in range(5):
            await client.send(post(body=b'{"i":%d}' % index))
            assert (await client.response())[1] == b'{"i":%d}' % index
    assert replica.connections == 1


async def test_a_stream_after_a_stream_on_one_connection() -> None:
    replica = ScriptedReplica("r0", stream)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        for _ in range(2):
            await client.send(post())
            assert b"transfer-encoding: chunked" in await client.head()
            assert (await client.until(b"0\r\n\r\n")).count(b"data: ") == 3
    assert replica.connections == 1


async def test_pipelined_requests_are_answered_in_order() -> None:
    replica = ScriptedReplica("r0", echo)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        requests = [post(body=b'{"i":%d}' % index) for index in range(20)]
        requests.insert(3, b"GET /own HTTP/1.1\r\nHost: router\r\n\r\n")
        await client.send(b"".join(requests))
        bodies = [(await client.response())[1] for _ in requests]
    expected = [b'{"i":%d}' % index for index in range(20)]
    expected.insert(3, b'{"own":true}')
    assert bodies == expected


async def test_a_chunked_body_arrives_whole() -> None:
    replica = ScriptedReplica("r0", echo)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        await client.send(
            b"POST /v1/x HTTP/1.1\r\nHost: router\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n"
        )
        await client.send(b"2;ext=1\r\n2]\r\n0\r\nTrailer: x\r\n\r\n")
        assert (await client.response())[1] == b"[1,2]"
    assert b"content-length: 5\r\n" in replica.calls[0].head


async def test_a_request_in_single_bytes_is_understood() -> None:
    async with data_plane(ScriptedReplica("r0", echo)) as plane:
        client = await plane.connect()
        for byte in post(body=b'{"a":1}'):
            await client.send(bytes([byte]))
        assert (await client.response())[1] == b'{"a":1}'


async def test_a_client_that_expects_100_gets_it_before_it_sends_the_body() -> None:
    async with data_plane(ScriptedReplica("r0", echo)) as plane:
        client = await plane.connect()
        whole = post(body=b'{"a":1}', extra=b"Expect: 100-continue\r\n")
        await client.send(whole[:-7])
        assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(whole[-7:])
        assert (await client.response())[1] == b'{"a":1}'


async def test_a_pipelined_request_that_expects_100_waits_for_its_turn() -> None:
    async with data_plane(ScriptedReplica("r0", echo)) as plane:
        client = await plane.connect()
        second = post(body=b"[2]", extra=b"Expect: 100-continue\r\n")
        await client.send(post(body=b"[1]") + second[:-3])
        assert (await client.response())[1] == b"[1]"
        assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(second[-3:])
        assert (await client.response())[1] == b"[2]"


async def test_head_is_answered_with_the_length_and_no_body() -> None:
    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")

    async with data_plane(ScriptedReplica("r0", script)) as plane:
        client = await plane.connect()
        for path in (b"/v1/x", b"/own"):
            await client.send(b"HEAD " + path + b" HTTP/1.1\r\nHost: router\r\n\r\n")
            head = await client.head()
            assert (b"content-length: 99" in head) == (path == b"/v1/x")
        await client.send(b"GET /own HTTP/1.1\r\nHost: router\r\n\r\n")
        assert (await client.response())[1] == b'{"own":true}'


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_an_answer_without_a_body_ends_at_its_head(status: bytes) -> None:
    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 " + status + b"\r\n\r\n")

    async with data_plane(ScriptedReplica("r0", script)) as plane:
        client = await plane.connect()
        for _ in range(2):
            await client.send(post())
            assert status in await client.head()


async def test_interim_answers_are_swallowed() -> None:
    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nL: x\r\n\r\n")
        await call.json()

    async with data_plane(ScriptedReplica("r0", script)) as plane:
        client = await plane.connect()
        await client.send(post())
        assert (await client.response())[1] == b'{"ok":true}'


async def test_an_http_1_0_client_gets_a_plain_body_and_a_close() -> None:
    async with data_plane(ScriptedReplica("r0", stream)) as plane:
        client = await plane.connect()
        await client.send(b"POST /v1/x HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
        answer = await client.rest()
    assert b"transfer-encoding" not in answer
    assert answer.endswith(b"\r\n\r\ndata: one\n\ndata: two\n\ndata: [DONE]\n\n")


async def test_a_body_that_ends_with_the_connection_ends_ours_too() -> None:
    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello")
        raise ConnectionError("done")

    async with data_plane(ScriptedReplica("r0", script)) as plane:
        client = await plane.connect()
        await client.send(post())
        answer = await client.rest()
    assert b"connection: close" in answer
    assert answer.endswith(b"\r\n\r\nhello")


async def test_connection_close_is_obeyed() -> None:
    async with data_plane(ScriptedReplica("r0", echo)) as plane:
        client = await plane.connect()
        await client.send(post(extra=b"Connection: close\r\n"))
        assert b"connection: close" in await client.rest()


async def test_an_upgrade_is_served_as_a_plain_request() -> None:
    async with data_plane(ScriptedReplica("r0", echo)) as plane:
        client = await plane.connect()
        await client.send(
            b"GET /own HTTP/1.1\r\nHost: router\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        )
        head, body = await client.response()
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert b"connection: keep-alive" in head
    assert body == b'{"own":true}'


SMUGGLED = {
    "length and chunked": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
    "two equal lengths": b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "list of lengths": b"Content-Length: 2, 2\r\n\r\n{}",
    "signed length": b"Content-Length: +2\r\n\r\n{}",
    "length that is no number": b"Content-Length: two\r\n\r\n{}",
    "folded header": b"X-A: 1\r\n X-B: 2\r\nContent-Length: 0\r\n\r\n",
    "space before colon": b"Content-Length : 2\r\n\r\n{}",
    "unknown coding": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bare LF": b"X-A: 1\nContent-Length: 0\r\n\r\n",
    "NUL in a value": b"X-A: \x00\r\nContent-Length: 0\r\n\r\n",
    "two hosts": b"Host: other\r\nContent-Length: 0\r\n\r\n",
    "bad chunk size": b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
}


@pytest.mark.parametrize("rest", SMUGGLED.values(), ids=SMUGGLED.keys())
async def test_an_ambiguous_request_is_refused_and_the_connection_closed(rest: bytes) -> None:
    replica = ScriptedReplica("r0", echo)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: router\r\n" + rest + post())
        answer = await client.rest()
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b'"invalid_request"' in answer
    assert answer.count(b"x-request-id:") == 1
    assert not replica.calls


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /own HTTP/1.1\r\n\r\n",
        b"GET ftp://x/own HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01",
    ],
    ids=["no host", "another scheme", "TLS hello"],
)
async def test_what_is_no_request_for_us_is_a_400(request_bytes: bytes) -> None:
    async with data_plane(ScriptedReplica("r0", echo)) as plane:
        client = await plane.connect()
        await client.send(request_bytes)
        assert (await client.rest()).startswith(b"HTTP/1.1 400 ")


LIMITS = LimitsConfig(max_head_bytes=1000, max_body_bytes=1000)
TOO_LARGE = {
    "declared body": (post(body=b"x" * 1001), b"413"),
    "chunked body": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"100\r\n"
        + b"x" * 256
        + b"\r\n"
        + b"400\r\n"
        + b"x" * 1024
        + b"\r\n",
        b"413",
    ),
    "one header": (post(extra=b"X-A: " + b"x" * 1000 + b"\r\n"), b"431"),
    "many headers": (post(extra=b"X-A: 12345\r\n" * 100), b"431"),
    "endless target": (b"GET /" + b"x" * 2000, b"431"),
    "endless header": (b"GET / HTTP/1.1\r\nX-A: " + b"x" * 2000, b"431"),
}


@pytest.mark.parametrize(("request_bytes", "status"), TOO_LARGE.values(), ids=TOO_LARGE.keys())
async def test_what_is_too_large_is_refused(request_bytes: bytes, status: bytes) -> None:
    async with data_plane(ScriptedReplica("r0", echo), limits=LIMITS) as plane:
        client = await plane.connect()
        await client.send(request_bytes)
        assert (await client.rest()).startswith(b"HTTP/1.1 " + status)


async def test_a_client_still_sending_its_large_body_can_read_why_it_was_refused() -> None:
    async with data_plane(ScriptedReplica("r0", echo), limits=LIMITS) as plane:
        client = await plane.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n")
        for _ in range(30):
            client.writer.write(b"x" * 100_000)
        assert (await client.rest()).startswith(b"HTTP/1.1 413 ")


async def test_requests_before_a_bad_one_are_still_answered() -> None:
    async with data_plane(ScriptedReplica("r0", echo)) as plane:
        client = await plane.connect()
        await client.send(post(body=b"[1]") + post(body=b"[2]") + b"nonsense\r\n\r\n")
        assert (await client.response())[1] == b"[1]"
        assert (await client.response())[1] == b"[2]"
        assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
