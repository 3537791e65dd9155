"""What must not pass: refused with its status, in OpenAI's shape, and no replica hears of it.

Sources: RFC 9112 §2.2, §3, §5, §6, §7.1, §11.2 (request smuggling); the variants that Kettle's
"HTTP Desync Attacks" (2019) and its successors collect.
"""

import json

import pytest

from router.config import LimitsConfig
from tests.support.data_plane import Call, Peer, ScriptedReplica, data_plane, post

START = b"POST /v1/x HTTP/1.1\r\nHost: a\r\n"
SMUGGLED = b"GET /v1/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
TE = b"Transfer-Encoding: chunked\r\n"
NO_CHUNKS = b"\r\n0\r\n\r\n"
CHUNKED = START + TE + b"\r\n"

FRAMING = {
    "length and chunks": START + b"Content-Length: 4\r\n" + TE + NO_CHUNKS,
    "chunks and length": START + TE + b"Content-Length: 4\r\n" + NO_CHUNKS,
    "length 0 and chunks": START + b"Content-Length: 0\r\n" + TE + NO_CHUNKS,
    "lengths that differ": START + b"Content-Length: 2\r\nContent-Length: 40\r\n\r\n{}",
    "lengths that are equal": START + b"Content-Length: 2\r\ncontent-length: 2\r\n\r\n{}",
    "a list of lengths": START + b"Content-Length: 2, 2\r\n\r\n{}",
    "a negative length": START + b"Content-Length: -2\r\n\r\n{}",
    "a length with a plus": START + b"Content-Length: +2\r\n\r\n{}",
    "a hexadecimal length": START + b"Content-Length: 0x2\r\n\r\n{}",
    "a length with blanks inside": START + b"Content-Length: 1 2\r\n\r\n{}",
    "a length with a blank after it": START + b"Content-Length: 2 \r\n\r\n{}",
    "a length with an underscore": START + b"Content-Length: 1_0\r\n\r\n{}",
    "an empty length": START + b"Content-Length:\r\n\r\n",
    "a length of many digits": START + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n",
    "a length in other digits": START + "Content-Length: ٢\r\n\r\n{}".encode(),
    "a coding that is not chunked": START + b"Transfer-Encoding: gzip\r\n" + NO_CHUNKS,
    "chunked not last": START + b"transfer-encoding: chunked, identity\r\n" + NO_CHUNKS,
    "chunked after another": START + b"Transfer-Encoding: gzip, chunked\r\n" + NO_CHUNKS,
    "chunked twice in one": START + b"Transfer-Encoding: chunked, chunked\r\n" + NO_CHUNKS,
    "chunked twice": START + TE + TE + NO_CHUNKS,
    "chunked, then identity": START + TE + b"Transfer-Encoding: identity\r\n" + NO_CHUNKS,
    "identity, then chunked": START + b"Transfer-Encoding: identity\r\n" + TE + NO_CHUNKS,
    "chunked, then nonsense": START + TE + b"Transfer-encoding: cow\r\n" + NO_CHUNKS,
    "xchunked": START + b"Transfer-Encoding: xchunked\r\n" + NO_CHUNKS,
    "chunkedx": START + b"Transfer-Encoding: chunkedx\r\n" + NO_CHUNKS,
    "chunked in quotes": START + b'Transfer-Encoding: "chunked"\r\n' + NO_CHUNKS,
    "chunked after a comma": START + b"Transfer-Encoding: ,chunked\r\n" + NO_CHUNKS,
    "chunked before a comma": START + b"Transfer-Encoding: chunked,\r\n" + NO_CHUNKS,
    "chunked with a parameter": START + b"Transfer-Encoding: chunked;q=1\r\n" + NO_CHUNKS,
    "chunked with a blank after it": START + b"Transfer-Encoding: chunked \r\n" + NO_CHUNKS,
    "chunked with a tab after it": START + b"Transfer-Encoding: chunked\t\r\n" + NO_CHUNKS,
    "chunked after a vertical tab": START + b"Transfer-Encoding:\x0bchunked\r\n" + NO_CHUNKS,
    "chunked after a form feed": START + b"Transfer-Encoding: \x0cchunked\r\n" + NO_CHUNKS,
    "chunked after a NUL": START + b"Transfer-Encoding: \x00chunked\r\n" + NO_CHUNKS,
    "chunked after high bytes": START + b"Transfer-Encoding: \xffchunked\r\n" + NO_CHUNKS,
    "chunked in a folded line": START + b"Transfer-Encoding:\r\n chunked\r\n" + NO_CHUNKS,
    "an empty coding": START + b"Transfer-Encoding:\r\n" + NO_CHUNKS,
    "a blank before the coding's colon": START + b"Transfer-Encoding : chunked\r\n" + NO_CHUNKS,
    "a tab before the coding's colon": START + b"Transfer-Encoding\t: chunked\r\n" + NO_CHUNKS,
    "a blank before the coding": START + b" Transfer-Encoding: chunked\r\n" + NO_CHUNKS,
    "a coding after a bare CR": START + b"X: a\rTransfer-Encoding: chunked\r\n" + NO_CHUNKS,
    "a coding after a bare LF": START + b"X: a\nTransfer-Encoding: chunked\r\n" + NO_CHUNKS,
    "chunks in HTTP/1.0": START.replace(b"1.1", b"1.0") + TE + NO_CHUNKS,
    "a length in the trailers": CHUNKED + b"0\r\nContent-Length: 40\r\n\r\n",
    "a coding in the trailers": CHUNKED + b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
}
CHUNKS = {
    "a size that overflows": CHUNKED + b"fffffffffffffffff\r\nab",
    "a size of 2^64": CHUNKED + b"10000000000000000\r\nab",
    "a negative size": CHUNKED + b"-1\r\nab\r\n0\r\n\r\n",
    "a size with 0x": CHUNKED + b"0x2\r\nab\r\n0\r\n\r\n",
    "a size with a blank": CHUNKED + b"2 \r\nab\r\n0\r\n\r\n",
    "no size": CHUNKED + b"\r\nab\r\n0\r\n\r\n",
    "a size that is no number": CHUNKED + b"xyz\r\n",
    "data longer than its size": CHUNKED + b"2\r\nabc\r\n0\r\n\r\n",
    "data without its end": CHUNKED + b"2\r\nab0\r\n\r\n",
    "data that ends in other bytes": CHUNKED + b"2\r\nabXX0\r\n\r\n",
    "a size ended by LF": CHUNKED + b"2\nab\r\n0\r\n\r\n",
    "an extension ended by LF": CHUNKED + b"2;x\nab\r\n0\r\n\r\n",
    "an extension that does not end": CHUNKED + b'2;x="y\r\nab\r\n0\r\n\r\n',
    "data ended by LF": CHUNKED + b"2\r\nab\n0\r\n\r\n",
}
SYNTAX = {
    "a folded line": START + b"X-A: 1\r\n X-B: 2\r\nContent-Length: 0\r\n\r\n",
    "a fold in the first line": b"POST /v1/x HTTP/1.1\r\n Host: a\r\nHost: a\r\n\r\n",
    "a blank before a colon": START + b"X-A : 1\r\n\r\n",
    "a line without a colon": START + b"X-A\r\n\r\n",
    "a line without a name": START + b": 1\r\n\r\n",
    "a name with a blank": START + b"X A: 1\r\n\r\n",
    "a name with high bytes": START + b"X\xc3\xa9: 1\r\n\r\n",
    "a bare CR in a value": START + b"X-A: 1\r2\r\n\r\n",
    "a bare LF after a line": START + b"X-A: 1\nContent-Length: 0\r\n\r\n",
    "bare LFs throughout": b"GET /v1/x HTTP/1.1\nHost: a\n\n",
    "a bare LF at the end": b"GET /v1/x HTTP/1.1\r\nHost: a\r\n\n",
    "a NUL in a value": START + b"X-A: \x00\r\n\r\n",
    "a NUL in a name": START + b"X\x00A: 1\r\n\r\n",
    "a control character in a value": START + b"X-A: \x01\r\n\r\n",
    "DEL in a value": START + b"X-A: \x7f\r\n\r\n",
    "no Host": b"GET /v1/x HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /v1/x HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "a Host with a path": b"GET /v1/x HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "a Host with a user": b"GET /v1/x HTTP/1.1\r\nHost: u@a\r\n\r\n",
    "a Host with a blank": b"GET /v1/x HTTP/1.1\r\nHost: a b\r\n\r\n",
    "a list of Hosts": b"GET /v1/x HTTP/1.1\r\nHost: a, b/\r\n\r\n",
    "a Host whose port is none": b"GET /v1/x HTTP/1.1\r\nHost: a:b\r\n\r\n",
    "a Host of high bytes": b"GET /v1/x HTTP/1.1\r\nHost: \xff\r\n\r\n",
    "an unknown method": b"FETCH /v1/x HTTP/1.1\r\nHost: a\r\n\r\n",
    "a method in lower case": b"get /v1/x HTTP/1.1\r\nHost: a\r\n\r\n",
    "no method": b" /v1/x HTTP/1.1\r\nHost: a\r\n\r\n",
    "a tunnel": b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
    "a target with a fragment": b"GET /v1/x#y HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target with a control character": b"GET /v1/\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target with a NUL": b"GET /v1/\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target with a tab": b"GET /v1/\tx HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target with a blank": b"GET /v1/x y HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target with high bytes": b"GET /v1/\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target without a slash": b"GET v1/x HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target of another scheme": b"GET ftp://a/v1/x HTTP/1.1\r\nHost: a\r\n\r\n",
    "an absolute target with a user": b"GET http://u@a/v1/x HTTP/1.1\r\nHost: a\r\n\r\n",
    "an absolute target without a host": b"GET http:///v1/x HTTP/1.1\r\nHost: a\r\n\r\n",
    "an asterisk, but for OPTIONS": b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    "no version": b"GET /v1/x\r\n\r\n",
    "HTTP/0.9": b"GET /v1/x HTTP/0.9\r\nHost: a\r\n\r\n",
    "HTTP/1.2": b"GET /v1/x HTTP/1.2\r\nHost: a\r\n\r\n",
    "HTTP/2.0": b"GET /v1/x HTTP/2.0\r\nHost: a\r\n\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a version without a dot": b"GET /v1/x HTTP/11\r\nHost: a\r\n\r\n",
    "a blank after the version": b"GET /v1/x HTTP/1.1 \r\nHost: a\r\n\r\n",
    "a TLS ClientHello": bytes.fromhex("16030100a5010000a10303") + b"\x00" * 64,
    "random bytes": bytes(range(128, 256)),
}
OTHER = {
    "a method of WebDAV": (
        b"PROPFIND /v1/x HTTP/1.1\r\nHost: a\r\n\r\n",
        405,
        "method_not_allowed",
    ),
    "TRACE": (b"TRACE /v1/x HTTP/1.1\r\nHost: a\r\n\r\n", 405, "method_not_allowed"),
    "RTSP": (b"DESCRIBE /v1/x RTSP/1.0\r\n\r\n", 405, "method_not_allowed"),
}
LIMITS = LimitsConfig(max_head_bytes=1000, max_body_bytes=1000)
TOO_LARGE = {
    "a declared body": (post(body=b"x" * 1001), 413, "payload_too_large"),
    "a body declared and awaited": (
        post(extra=b"Expect: 100-continue\r\n").replace(b"Length: 2", b"Length: 2000"),
        413, "payload_too_large",
    ),
    "a body in chunks": (CHUNKED + b"1F4\r\n%b\r\n" % (b"x" * 500) * 3, 413, "payload_too_large"),
    "a body in chunks of a byte": (CHUNKED + b"1\r\nx\r\n" * 1001, 413, "payload_too_large"),
    "one header": (START + b"X-A: " + b"x" * 1000 + b"\r\n\r\n", 431, "headers_too_large"),
    "many headers": (START + b"X-A: 12345\r\n" * 100 + b"\r\n", 431, "headers_too_large"),
    "a request line": (b"GET /" + b"x" * 1000 + b" HTTP/1.1\r\n", 431, "headers_too_large"),
    "a request line without end": (b"GET /" + b"x" * 2000, 431, "headers_too_large"),
    "a header without end": (START + b"X-A: " + b"x" * 2000, 431, "headers_too_large"),
    "a name without end": (START + b"x" * 2000, 431, "headers_too_large"),
    "empty lines without end": (b"\r\n" * 1000, 431, "headers_too_large"),
    "trailers": (CHUNKED + b"0\r\n" + b"X-A: 12345\r\n" * 200, 431, "headers_too_large"),
    "a trailer without end": (CHUNKED + b"0\r\nX-A: " + b"x" * 2000, 431, "headers_too_large"),
    "an extension": (CHUNKED + b"2;x=" + b"y" * 2000, 431, "headers_too_large"),
    "a size with zeros": (CHUNKED + b"0" * 2000, 431, "headers_too_large"),
}  # fmt: skip


async def answer(call: Call) -> None:
    await call.json()


async def check_refused(client: Peer, status: int, code: str) -> None:
    """One whole error answer in OpenAI's shape, and the end of the connection."""
    head, body = await client.response()
    assert head.startswith(b"HTTP/1.1 %d " % status), (head, body)
    assert b"content-type: application/json\r\n" in head
    assert b"connection: close\r\n" in head
    assert b"x-request-id: " in head
    error = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert error["type"] == "invalid_request_error"
    assert await client.rest() == b""


BAD = {
    f"{name}: {case}": sent
    for name, table in (("framing", FRAMING), ("chunks", CHUNKS), ("syntax", SYNTAX))
    for case, sent in table.items()
}


@pytest.mark.parametrize("sent", BAD.values(), ids=BAD)
@pytest.mark.parametrize("singly", [False, True], ids=["at once", "in single bytes"])
async def test_what_could_be_read_in_two_ways_is_a_400_and_closes(
    sent: bytes, singly: bool
) -> None:
    replica = ScriptedReplica("r0", answer)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        whole = sent + SMUGGLED
        for piece in [whole[i : i + 1] for i in range(len(whole))] if singly else [whole]:
            client.writer.write(piece)
        await check_refused(client, 400, "invalid_request")
        assert len(plane.handler.refusals) == 1
        assert not plane.handler.finished
    assert not replica.calls


@pytest.mark.parametrize(("sent", "status", "code"), OTHER.values(), ids=OTHER)
async def test_what_is_not_http_for_us_is_refused(sent: bytes, status: int, code: str) -> None:
    replica = ScriptedReplica("r0", answer)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        await client.send(sent + SMUGGLED)
        await check_refused(client, status, code)
    assert not replica.calls


@pytest.mark.parametrize(("sent", "status", "code"), TOO_LARGE.values(), ids=TOO_LARGE)
async def test_what_is_too_large_is_refused_before_it_is_whole(
    sent: bytes, status: int, code: str
) -> None:
    replica = ScriptedReplica("r0", answer)
    async with data_plane(replica, limits=LIMITS) as plane:
        client = await plane.connect()
        for start in range(0, len(sent), 10):
            client.writer.write(sent[start : start + 10])
        await check_refused(client, status, code)
    assert not replica.calls


async def test_after_an_answer_a_bad_request_is_refused_in_its_turn() -> None:
    replica = ScriptedReplica("r0", answer)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        await client.send(post() + post() + START + TE + TE + NO_CHUNKS + SMUGGLED)
        for _ in range(2):
            assert (await client.response())[1] == b'{"ok":true}'
        await check_refused(client, 400, "invalid_request")
    assert len(replica.calls) == 2


async def test_what_comes_after_the_last_request_is_not_read() -> None:
    replica = ScriptedReplica("r0", answer)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        await client.send(post(extra=b"Connection: close\r\n") + SMUGGLED)
        assert (await client.response())[1] == b'{"ok":true}'
        assert await client.rest() == b""
        assert not plane.handler.refusals
    assert len(replica.calls) == 1
