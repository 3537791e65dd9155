"""Replicas that answer at once and compute nothing: what is left to measure is the router.

Run as `python -m loadtests.stand_in --replicas N`; prints the ports of each as JSON: `[http]`, or
`[http, events, replay]`. A chat with `"stream":true` gets `max_tokens` events, each a packet of its
own, the others one JSON body. With `--event-batches-per-s` all replicas together publish so many
batches of KV events.
"""

import argparse
import asyncio
import json
import re
import time
import zlib
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import cycle
from typing import cast

import httptools
import msgspec
import uvloop
import zmq.asyncio

from loadtests.sync_publishers import batch
from protocol.kv_events import (
    END_OF_REPLAY,
    BlockRemoved,
    EventBatch,
    KvEvent,
    encode_batch,
    encode_sequence_number,
)

MODEL = "m"
# Two in turn: LiteLLM breaks off a stream that says the same a hundred times.
WORDS = (b" word", b" sword")
WORD_END = b'word"'
# How many events a stream has when `max_tokens` does not say.
EVENTS = 20
# Without a pause a busy router finds many events in one read, and the busiest has least to do.
EVENT_INTERVAL_S = 0.002

_BODY = (
    b'{"id":"chatcmpl-0","object":"chat.completion","created":1,"model":"m","choices":'
    b'[{"index":0,"message":{"role":"assistant","content":"Hello there."},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":250,"completion_tokens":3,"total_tokens":253,'
    b'"prompt_tokens_details":{"cached_tokens":0}}}'
)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
_EVENTS = [
    b'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n' % word
    for word in WORDS
]
_CHUNKS = [b"%x\r\n%b\r\n" % (len(event), event) for event in _EVENTS]
_STREAM_END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def _answer(status: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(body)) + body


# What routers ask beside chats: vLLM's paths, and SGLang's (get_…).
_MODEL_INFO = {"model_path": MODEL, "tokenizer_path": MODEL, "is_generation": True}
_SERVER_INFO = {**_MODEL_INFO, "served_model_name": MODEL, "tp_size": 1, "dp_size": 1}
_MODELS = {
    "object": "list",
    "data": [{"id": MODEL, "object": "model", "owned_by": "stand-in", "max_model_len": 131_072}],
}
_CHAT = _answer(b"200 OK", _BODY)
_ABSENT = _answer(b"404 Not Found", b"{}")
_ANSWERS = {
    b"/v1/chat/completions": _CHAT,
    **{
        path: _answer(b"200 OK", json.dumps(told).encode())
        for path, told in {
            b"/ready": {},
            b"/version": {"version": "0.26.0"},
            b"/health": {},
            b"/health_generate": {},
            b"/v1/models": _MODELS,
            b"/get_model_info": _MODEL_INFO,
            b"/model_info": _MODEL_INFO,
            b"/get_server_info": _SERVER_INFO,
            b"/server_info": _SERVER_INFO,
        }.items()
    },
}
# Routers that read a body write it anew: with spaces, in another order.
_STREAMED = re.compile(rb'"stream":\s*true')
_MAX_TOKENS = re.compile(rb'"max_(?:completion_)?tokens":\s*(\d+)')
# Token ids as JSON, 6 bytes each, for prompts of any length.
_TOKEN_IDS = b",".join(b"%d" % (10_000 + index % 39_000) for index in range(200_000))
_BYTES_PER_TOKEN = 4


_RENDER = b"/v1/chat/completions/render"


def _rendered(body: bytes) -> bytes:
    """A chat's token ids as vLLM tells them: as many as it would have, the first its own."""
    length = min(len(body) // _BYTES_PER_TOKEN * 6, len(_TOKEN_IDS)) // 6 * 6 - 1
    ids = b"%d,%b" % (zlib.crc32(body), _TOKEN_IDS[:length])
    return _answer(b"200 OK", b'{"request_id":"0","token_ids":[%b],"sampling_params":{}}' % ids)


class StandIn(asyncio.Protocol):
    """A replica's end of one connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""
        self._body: list[bytes] = []
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:  # some ask first whether we speak HTTP/2
            self._transport.close()

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        path, body = self._path, b"".join(self._body)
        self._path = b""
        self._body.clear()
        if path == _RENDER:
            self._transport.write(_rendered(body))
            return
        answer = _ANSWERS.get(path, _ABSENT)
        if answer is not _CHAT or not _STREAMED.search(body):
            self._transport.write(answer)
            return
        told = _MAX_TOKENS.search(body)
        self._transport.write(_STREAM_HEAD)
        self._send_events(int(told[1]) if told else EVENTS)

    def _send_events(self, left: int) -> None:
        if self._transport.is_closing():
            return
        if left == 0:
            self._transport.write(_STREAM_END)
            return
        self._transport.write(_CHUNKS[left % 2])
        self._loop.call_later(EVENT_INTERVAL_S, self._send_events, left - 1)


# Batches a replica publishes before it tells the same again; half of them are cached at a time.
_BATCHES = 512
_REPLAYED_BATCHES = 1000


class _Cache:
    """A cache that stores a few blocks a batch and drops as many: what it publishes never ends."""

    def __init__(self, context: zmq.asyncio.Context, seed: int) -> None:
        self._stored = [
            msgspec.structs.replace(batch(seed, seq), parent_block_hash=None)
            for seq in range(_BATCHES)
        ]
        self._seq = 0
        self._sent: deque[tuple[bytes, bytes]] = deque(maxlen=_REPLAYED_BATCHES)
        self._publisher = context.socket(zmq.PUB)
        self.port = self._publisher.bind_to_random_port("tcp://127.0.0.1")
        self._router = context.socket(zmq.ROUTER)
        self.replay_port = self._router.bind_to_random_port("tcp://127.0.0.1")

    async def publish(self) -> None:
        events: list[KvEvent] = [self._stored[self._seq % _BATCHES]]
        if self._seq >= _BATCHES // 2:
            oldest = self._stored[(self._seq - _BATCHES // 2) % _BATCHES]
            events.append(BlockRemoved(block_hashes=oldest.block_hashes, medium=oldest.medium))
        payload = encode_batch(EventBatch(ts=time.time(), events=events))
        number = encode_sequence_number(self._seq)
        self._seq += 1
        self._sent.append((number, payload))
        await self._publisher.send_multipart([b"", number, payload])

    async def serve_replays(self) -> None:
        while True:
            identity, empty, first = await self._router.recv_multipart()
            for number, payload in list(self._sent):
                if number >= first:
                    await self._router.send_multipart([identity, empty, b"", number, payload])
            await self._router.send_multipart([identity, empty, b"", END_OF_REPLAY, b""])


async def _publish(caches: Sequence[_Cache], batches_per_s: float) -> None:
    """All in turn, at a steady rate."""
    for cache in cycle(caches):
        await cache.publish()
        await asyncio.sleep(1 / batches_per_s)


async def serve(replicas: int, batches_per_s: float) -> None:
    loop = asyncio.get_running_loop()
    context = zmq.asyncio.Context()
    caches = [_Cache(context, seed) for seed in range(replicas)] if batches_per_s else []
    servers = [
        await loop.create_server(StandIn, "127.0.0.1", 0, backlog=1024) for _ in range(replicas)
    ]
    ports = [[server.sockets[0].getsockname()[1]] for server in servers]
    for told, cache in zip(ports, caches, strict=False):
        told += [cache.port, cache.replay_port]
    print(json.dumps(ports), flush=True)
    try:
        async with asyncio.TaskGroup() as tasks:
            for cache in caches:
                tasks.create_task(cache.serve_replays())
            if caches:
                tasks.create_task(_publish(caches, batches_per_s))
            for server in servers:
                tasks.create_task(server.serve_forever())
    finally:
        context.destroy(linger=0)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--event-batches-per-s", type=float, default=0.0)
    chosen = parser.parse_args(arguments)
    with suppress(KeyboardInterrupt):
        uvloop.run(serve(chosen.replicas, chosen.event_batches_per_s))


if __name__ == "__main__":
    main()
