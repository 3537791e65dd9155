"""How a simulated replica answers HTTP: readiness, chats and completions, streamed or whole.

The shapes of answers are the replica's own (`replica.api.answers`); what it says is `sim.model`'s.
"""

import asyncio
from typing import TYPE_CHECKING, Any, cast

import httptools
import msgspec

from protocol import sse
from protocol.errors import encode_error
from protocol.openai import Usage, usage
from protocol.resume import (
    RESUMABLE_FIELD,
    RESUME_KEY,
    RESUMES_BY_TOKENS,
    RESUMES_FIELD,
    tokens_line,
)
from replica.api.answers import Chat, Completion
from replica.core.limits import NeverFits, QueueFull
from replica.core.sequence import Finish, SequenceOutput
from tests.sim.model import NAME, TOKENIZER, text_of
from tests.support.byte_model import END, TEMPLATE

if TYPE_CHECKING:
    from tests.sim.replica import SimReplica

_encode = msgspec.json.Encoder().encode
_CHAT = b"/v1/chat/completions"
_IDLE_CLOSE_S = 0.02


class ServerConnection(asyncio.Protocol):
    """One connection to the replica: a request, its answer, the next one."""

    def __init__(self, replica: "SimReplica") -> None:
        self.replica = replica
        self.transport: asyncio.Transport | None = None
        self._answering: Answering | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""
        self._headers: dict[bytes, bytes] = {}
        self._body = b""

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self._answering is not None:
            self._answering.gone()

    # httptools

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        assert self._answering is None, "the router does not pipeline"
        if self._path == b"/ready":
            self.answer(200 if self.replica.ready else 503, b"{}")
            return
        self._answering = Answering(self, self._path, self._headers, self._body)
        self._answering.begin()

    # For the answer

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def answer(self, status: int, body: bytes) -> None:
        self.write(
            self.head(status, b"content-length: %d\r\ncontent-type: application/json" % len(body))
            + body
        )
        self.done()

    def head(self, status: int, fields: bytes) -> bytes:
        told = b""
        if self.replica.spec.kind.value == "ours":
            told = b"%b: %b\r\n" % (RESUMES_FIELD, RESUMES_BY_TOKENS)
        return b"HTTP/1.1 %d X\r\n%b%b\r\n\r\n" % (status, told, fields)

    def done(self) -> None:
        self._answering = None
        self._begin()
        replica = self.replica
        if replica.rng.random() < replica.network.faults.idle_close and self.transport is not None:
            replica.network.loop.call_later(
                _IDLE_CLOSE_S * replica.rng.random(), self._close_if_idle
            )

    def _close_if_idle(self) -> None:
        if self._answering is None and self.transport is not None and not self.replica.frozen:
            self.transport.close()


class Answering:
    """One answer on its way, from the request to its last token, or until nobody wants it."""

    def __init__(
        self, connection: ServerConnection, path: bytes, headers: dict[bytes, bytes], body: bytes
    ) -> None:
        self._connection = connection
        self._replica = connection.replica
        self._chat = path == _CHAT
        self._tells_tokens = (
            self._replica.spec.kind.value == "ours" and headers.get(RESUMABLE_FIELD) == b"1"
        )
        self._number: int | None = None
        self._fields: dict[str, Any] = msgspec.json.decode(body)
        self._stream = bool(self._fields.get("stream"))
        self._tokens: list[int] = []
        self._begun = False
        self._reports_at: int | None = None

    def begin(self) -> None:
        replica, fields = self._replica, self._fields
        if not replica.ready:
            self._refuse(503, "loading", "not_ready")
            return
        if replica.rng.random() < replica.network.faults.replica_error:
            if replica.rng.random() < 0.5:
                self._refuse(500, "a bug of the replica's", "internal_error")
                return
            self._reports_at = replica.rng.randrange(1, 8)
        resume = fields.get(RESUME_KEY)
        self._said: list[int] = [] if resume is None else resume["token_ids"]
        answer_id = f"id-{replica.rng.getrandbits(32):08x}" if resume is None else resume["id"]
        created = 1 if resume is None else resume["created"]
        self._resumed = resume is not None
        self._kind = (Chat if self._chat else Completion)(answer_id, created, NAME)
        self._prompt = self._prompt_tokens()
        max_tokens = fields["max_tokens"]
        assert len(self._said) <= max_tokens, "no more was said than was asked for"
        if self._said and (self._said[-1] == END or len(self._said) == max_tokens):
            self._tokens = list(self._said)
            finish = "stop" if self._said[-1] == END else "length"
            self._tell([], finish, 0)
            return
        try:
            self._number = replica.engine.submit(
                self._prompt + self._said, max_tokens - len(self._said), fields.get("cache_salt")
            )
        except QueueFull as error:
            self._refuse(429, str(error), "queue_full")
        except NeverFits as error:
            self._refuse(400, str(error), "context_length_exceeded")
        else:
            self._tokens = list(self._said)
            replica.answering[self._number] = self

    def _prompt_tokens(self) -> list[int]:
        fields = self._fields
        if not self._chat:
            prompt = fields["prompt"]
            return prompt if isinstance(prompt, list) else TOKENIZER.encode(prompt, False)
        text = TEMPLATE.render(
            fields["messages"],
            tools=None,
            add_generation_prompt=fields.get("add_generation_prompt", True),
            continue_final_message=fields.get("continue_final_message", False),
            variables={},
        )
        return TOKENIZER.encode(text, False)

    def output(self, output: SequenceOutput) -> None:
        self._tokens.append(output.token_id)
        finish = None
        if output.finish is not None:
            finish = "stop" if output.finish is Finish.STOP else "length"
            del self._replica.answering[output.sequence_id]
        self._tell([output.token_id], finish, output.cached_tokens)

    def gone(self) -> None:
        """Nobody wants it any more."""
        if self._number is not None and self._number in self._replica.answering:
            del self._replica.answering[self._number]
            self._replica.engine.abort(self._number)

    def _usage(self, cached_tokens: int) -> Usage:
        return usage(len(self._prompt), len(self._tokens), min(cached_tokens, len(self._prompt)))

    def _tell(self, new: list[int], finish: Any, cached_tokens: int) -> None:
        if not self._stream:
            if finish is not None:
                text = text_of(self._tokens)
                body = self._kind.whole(text, finish, self._usage(cached_tokens))
                self._connection.answer(200, _encode(body))
            return
        ahead = b""
        if not self._begun:
            self._begun = True
            self._connection.write(
                self._connection.head(
                    200, b"content-type: text/event-stream\r\ntransfer-encoding: chunked"
                )
            )
            opening = None if self._resumed else self._kind.opening()
            ahead = b"" if opening is None else sse.frame(_encode(opening))
        if self._reports_at is not None and len(self._tokens) >= self._reports_at:
            body = encode_error(
                "a bug of the replica's", type="server_error", code="internal_error"
            )
            self._chunk(ahead + sse.frame(body), last=True)
            self.gone()
            return
        frames = sse.frame(_encode(self._kind.chunk(text_of(new), finish, None)))
        if self._tells_tokens:
            frames = tokens_line(new) + frames
        frames = ahead + frames
        if finish is not None:
            options = self._fields.get("stream_options") or {}
            if options.get("include_usage"):
                frames += sse.frame(_encode(self._kind.usage_chunk(self._usage(cached_tokens))))
            frames += sse.DONE
        self._chunk(frames, last=finish is not None)

    def _chunk(self, data: bytes, *, last: bool) -> None:
        self._connection.write(
            b"%x\r\n%b\r\n" % (len(data), data) + (b"0\r\n\r\n" if last else b"")
        )
        if last:
            self._connection.done()

    def _refuse(self, status: int, message: str, code: str) -> None:
        self._connection.answer(status, encode_error(message, type="error", code=code))
