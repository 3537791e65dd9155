"""A small server that streams chat answers like the router: its headers, its usage, its errors.

A token is a word. Two replicas take turns by the conversation's first user message, and each
remembers the prompts it has seen, so cached tokens behave as they do behind a real router.
What the last user message says decides what happens; see `SPECIAL`.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from protocol.errors import Overloaded, encode_error
from protocol.openai import (
    ChatChunk,
    ChatChunkChoice,
    ChatRequest,
    Delta,
    ModelCard,
    ModelList,
    usage,
)
from protocol.sse import DONE, frame

MODEL = "fake-model"
ANSWER = ("The", " cache", " is", " warm", ".")
SPECIAL = {
    "refuse": "answers 429 with an error body",
    "crash": "answers 500 with a body that is no JSON",
    "break": "closes the connection in the middle of the answer",
    "error": "ends the stream with an error event",
    "escape": "says something that holds terminal escape sequences",
    "forever": "streams until the client leaves",
}


@dataclass
class FakeServer:
    """What the server has seen; `client_left` is set when a client closes a stream early.

    `port` 0 takes a free one; `/ready` answers 503 `ready_after` times first; from
    request number `fail_from` (from 1) on, every answer breaks off.
    """

    url: str = ""
    port: int = 0
    ready_after: int = 0
    fail_from: int | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    client_left: threading.Event = field(default_factory=threading.Event)
    seen: dict[str, list[list[str]]] = field(default_factory=lambda: {"r0": [], "r1": []})

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_get("/health", self._health)
        application.router.add_get("/ready", self._ready)
        application.router.add_get("/v1/models", self._models)
        application.router.add_post("/v1/chat/completions", self._chat)
        return application

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _ready(self, _: web.Request) -> web.Response:
        self.ready_after -= 1
        return web.Response(status=503 if self.ready_after >= 0 else 200)

    async def _models(self, _: web.Request) -> web.Response:
        models = ModelList(data=[ModelCard(id=MODEL, created=0), ModelCard(id="other", created=0)])
        return web.Response(body=msgspec.json.encode(models), content_type="application/json")

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        body = await http.read()
        request = msgspec.json.decode(body, type=ChatRequest)
        self.requests.append(msgspec.json.decode(body))
        assert request.stream
        assert request.stream_options is not None
        assert request.stream_options.include_usage
        question = str(request.messages[-1].content)
        if question == "refuse":
            error = Overloaded("the queue is full")
            return web.Response(status=429, body=error.body(), content_type="application/json")
        if question == "crash":
            return web.Response(status=500, text="<h1>Internal\nerror</h1>")
        words = " ".join(f"{m.role} {m.content}" for m in request.messages).split()
        first = next(m.content for m in request.messages if m.role == "user")
        replica = f"r{len(str(first)) % 2}"
        cached = max((common_words(words, old) for old in self.seen[replica]), default=0)
        response = web.StreamResponse(
            headers={
                "content-type": "text/event-stream",
                "x-request-id": f"request-{len(self.requests)}",
                "x-warmroute-replica": replica,
                "x-warmroute-matched-tokens": str(cached),
            }
        )
        await response.prepare(http)
        completion_tokens = await self._answer(http, response, question)
        if completion_tokens is not None:
            self.seen[replica].append(words)
            await response.write(_event(usage_of=(len(words), completion_tokens, cached)) + DONE)
        return response

    async def _answer(
        self, http: web.Request, response: web.StreamResponse, question: str
    ) -> int | None:
        """Streams the answer's tokens; how many they were, or None if the stream is over."""
        await response.write(_event(Delta(role="assistant", content="")))
        if question == "forever":
            try:
                while True:
                    await response.write(_event(Delta(content="word ")))
                    await asyncio.sleep(0.005)
            except (ConnectionResetError, asyncio.CancelledError):
                self.client_left.set()
                raise
        tokens = ("\x1b[2J", "safe") if question == "escape" else ANSWER
        for token in tokens:
            await response.write(_event(Delta(content=token)))
            if question == "break" or self._fails():
                assert http.transport is not None
                http.transport.close()
                return None
            if question == "error":
                body = encode_error("the replica died", type="upstream_error")
                await response.write(frame(body) + DONE)
                return None
        await response.write(_event(Delta(), finish_reason="stop"))
        return len(tokens) + 1

    def _fails(self) -> bool:
        return self.fail_from is not None and len(self.requests) >= self.fail_from


@contextmanager
def running(server: FakeServer | None = None) -> Iterator[FakeServer]:
    """A fake server on an ephemeral loopback port, in a thread of its own, so that sync code and
    child processes can talk to it."""
    server = server or FakeServer()
    started = threading.Event()
    stop: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        runner = web.AppRunner(
            server.application(), handler_cancellation=True, shutdown_timeout=0.2
        )
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", server.port)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        stopping = asyncio.Event()
        stop.append((asyncio.get_running_loop(), stopping))
        started.set()
        await stopping.wait()
        await runner.cleanup()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert started.wait(timeout=10)
    try:
        yield server
    finally:
        loop, stopping = stop[0]
        loop.call_soon_threadsafe(stopping.set)
        thread.join(timeout=10)
        assert not thread.is_alive()


def _event(
    delta: Delta | None = None,
    *,
    finish_reason: Any = None,
    usage_of: tuple[int, int, int] | None = None,
) -> bytes:
    choices = []
    if delta is not None:
        choices.append(ChatChunkChoice(index=0, delta=delta, finish_reason=finish_reason))
    chunk = ChatChunk(
        id="chat-1",
        created=0,
        model=MODEL,
        choices=choices,
        usage=usage(*usage_of) if usage_of else None,
    )
    return frame(msgspec.json.encode(chunk))


def common_words(first: list[str], second: list[str]) -> int:
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return length
