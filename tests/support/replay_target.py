"""A server for replays: a token is a word, each replica remembers prompts, and some requests fail.

Built on the fake server's models and thread (`fake_openai_server.running`).
"""

import asyncio
import threading
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from protocol.errors import Overloaded, encode_error
from protocol.openai import usage
from protocol.sse import DONE, frame
from tests.support.fake_openai_server import MODEL, FakeServer, common_words

AROUND_TOKENS = 7
"""What a chat adds to a prompt."""


@dataclass
class ReplayTarget(FakeServer):
    """
    Attributes:
        faults: By a request's number as it arrives, from 0: `refuse`, `break`, `stall`, `error`,
            `forever`; every other one is answered. `*` is any number.
        tokenizes: Whether there is a /tokenize.
        tells_usage: Whether answers tell their usage.
        short_by: So many tokens fewer than asked for.
    """

    faults: dict[int | str, str] = field(default_factory=dict)
    tokenizes: bool = True
    tells_usage: bool = True
    short_by: int = 0
    in_flight: int = 0
    in_flight_max: int = 0
    streaming: threading.Event = field(default_factory=threading.Event)
    probes: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)

    def application(self) -> web.Application:
        application = web.Application(client_max_size=2**26)
        application.router.add_get("/v1/models", self._models)
        application.router.add_post("/v1/chat/completions", self._load)
        application.router.add_post("/v1/completions", self._load)
        if self.tokenizes:
            application.router.add_post("/tokenize", self._tokenize)
        return application

    @property
    def prompts(self) -> list[str]:
        return [_prompt(body) for body in self.requests]

    async def _tokenize(self, http: web.Request) -> web.Response:
        count = _tokens(await http.json())
        return web.json_response({"tokens": [], "count": count, "max_model_len": 4096})

    async def _load(self, http: web.Request) -> web.StreamResponse:
        body = await http.json()
        self.keys.add(http.headers.get("authorization"))
        if not body.get("stream"):
            self.probes.append(body)
            told = {"usage": {"prompt_tokens": _tokens(body)}} if self.tells_usage else {}
            return web.json_response({"choices": [], **told})
        number = len(self.requests)
        self.requests.append(body)
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        try:
            fault = self.faults.get(number) or self.faults.get("*")
            return await self._answer_or_fail(http, body, fault, f"r{number % 2}")
        finally:
            self.in_flight -= 1

    async def _answer_or_fail(
        self, http: web.Request, body: dict[str, Any], fault: str | None, replica: str
    ) -> web.StreamResponse:
        if fault == "refuse":
            error = Overloaded("the queue is full")
            return web.Response(status=429, body=error.body(), content_type="application/json")
        response = web.StreamResponse(
            headers={"content-type": "text/event-stream", "x-warmroute-replica": replica}
        )
        await response.prepare(http)
        chat = "messages" in body
        tokens = body["max_tokens"] - self.short_by
        for index in range(tokens):
            await response.write(_event(chat, f" word{index}"))
            if fault == "break":
                assert http.transport is not None
                http.transport.close()
                return response
            if fault == "error":
                await response.write(frame(encode_error("the replica died", type="lost")) + DONE)
                return response
            if fault in ("stall", "forever"):
                self.streaming.set()
                await asyncio.sleep(60)
            await asyncio.sleep(0.001)
        if self.tells_usage:
            words = _prompt(body).split()
            told = usage(_tokens(body), tokens, self._cached(replica, words))
            await response.write(frame(msgspec.json.encode({"choices": [], "usage": told})))
        await response.write(DONE)
        return response

    def _cached(self, replica: str, words: list[str]) -> int:
        cached = max((common_words(words, old) for old in self.seen[replica]), default=0)
        self.seen[replica].append(words)
        return cached


def _prompt(body: dict[str, Any]) -> str:
    prompt: str = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
    return prompt


def _tokens(body: dict[str, Any]) -> int:
    return len(_prompt(body).split()) + (AROUND_TOKENS if "messages" in body else 0)


def _event(chat: bool, text: str) -> bytes:
    said = {"delta": {"content": text}} if chat else {"text": text}
    chunk = {"id": "1", "model": MODEL, "choices": [{"index": 0, "finish_reason": None, **said}]}
    return frame(msgspec.json.encode(chunk))
