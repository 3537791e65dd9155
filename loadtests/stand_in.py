"""A replica that answers at once and computes nothing: what is left to measure is the router.

Run as `python -m loadtests.stand_in --port PORT`. Chats with `"stream":true` get EVENTS events in
single writes, the others one JSON body. `/ready` says 200.
"""

import argparse
import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import cast

import httptools
import uvloop

EVENTS = 20

_BODY = (
    b'{"id":"chatcmpl-0","object":"chat.completion","created":1,"model":"stand-in","choices":'
    b'[{"index":0,"message":{"role":"assistant","content":"Hello there."},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":250,"completion_tokens":3,"total_tokens":253,'
    b'"prompt_tokens_details":{"cached_tokens":0}}}'
)
_PLAIN = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_BODY)
    + _BODY
)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
_EVENT = (
    b'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":1,"model":"stand-in",'
    b'"choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\n\n'
)
_CHUNK = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)
_STREAM_END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class _Connection(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpRequestParser(self)
        self._streaming = False

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._streaming = b'"stream":true' in body

    def on_message_complete(self) -> None:
        if not self._streaming:
            self._transport.write(_PLAIN)
            return
        self._streaming = False
        self._transport.write(_STREAM_HEAD)
        self._send_events(EVENTS)

    def _send_events(self, left: int) -> None:
        """One event a turn of the loop, so that each is a packet of its own."""
        if self._transport.is_closing():
            return
        if left == 0:
            self._transport.write(_STREAM_END)
            return
        self._transport.write(_CHUNK)
        asyncio.get_running_loop().call_soon(self._send_events, left - 1)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    with suppress(KeyboardInterrupt):
        uvloop.run(_serve(parser.parse_args(arguments).port))


if __name__ == "__main__":
    main()
