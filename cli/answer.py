"""What one streamed answer tells: its text, who gave it, what was cached, when tokens came.

Bytes and times in, facts out: the chat, the demo, the load test and the replay read their streams
with it, each over its own HTTP client.

AnswerError
├── RequestRefused   an HTTP status that is not 200
└── StreamBroken     the stream ended early, held an error, or was no stream of answers
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from protocol.openai import Usage
from protocol.sse import EventParser

REPLICA_HEADER = "x-warmroute-replica"
MATCHED_TOKENS_HEADER = "x-warmroute-matched-tokens"
REQUEST_ID_HEADER = "x-request-id"


class AnswerError(Exception):
    """No whole answer; the message is one line for a person."""


class RequestRefused(AnswerError):
    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class StreamBroken(AnswerError):
    pass


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A finished answer. Times are seconds since the request was sent; None: not told.

    `matched_tokens` is what the router predicted to be cached, `cached_tokens` what the replica
    then found.
    """

    text: str
    replica: str | None
    request_id: str | None
    matched_tokens: int | None
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    ttft_s: float
    total_s: float
    tokens_per_s: float | None
    finish_reason: str | None

    @property
    def cached_share(self) -> float | None:
        """Of the prompt's tokens, 0 to 1."""
        if self.prompt_tokens is None or self.cached_tokens is None or self.prompt_tokens == 0:
            return None
        return self.cached_tokens / self.prompt_tokens


class _Delta(msgspec.Struct, frozen=True, kw_only=True):
    content: str | None = None
    # vLLM's and SGLang's names of what a model thinks: not shown, but tokens.
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct, frozen=True, kw_only=True):
    """`delta` is a chat's, `text` a plain completion's."""

    delta: _Delta = msgspec.field(default_factory=_Delta)
    text: str | None = None
    finish_reason: str | None = None


class _Error(msgspec.Struct, frozen=True, kw_only=True):
    message: str = ""
    type: str | None = None
    code: Any = None


class _Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """A stream event of any OpenAI-compatible server, as far as it is shown."""

    choices: list[_Choice] = []
    usage: Usage | None = None
    error: _Error | str | None = None


class _ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    error: _Error | str


# msgspec leaves text that is not UTF-8 to Python's own error.
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError)

_chunk_decoder = msgspec.json.Decoder(_Chunk)
_error_decoder = msgspec.json.Decoder(_ErrorBody)


class AnswerReader:
    """Reads one answer: `begin` with its head, `feed` its body's bytes, `finish` at its end."""

    def __init__(self, sent_s: float) -> None:
        """`sent_s`: when the request was sent, on the clock of every later time."""
        self._sent_s = sent_s
        self._events = EventParser()
        self._headers: Mapping[str, str] = {}
        self._pieces: list[str] = []
        self._first_s: float | None = None
        self._last_s: float | None = None
        self._gaps_s: list[float] = []
        self._usage: Usage | None = None
        self._finish_reason: str | None = None
        self._done = False

    @property
    def text(self) -> str:
        """What has been said so far."""
        return "".join(self._pieces)

    @property
    def first_s(self) -> float | None:
        """When the first token came, also of an answer that is not whole."""
        return self._first_s

    @property
    def last_s(self) -> float | None:
        return self._last_s

    @property
    def usage(self) -> Usage | None:
        """As last told."""
        return self._usage

    @property
    def gaps_s(self) -> Sequence[float]:
        """Between events that held text, in their order."""
        return self._gaps_s

    def begin(self, headers: Mapping[str, str]) -> None:
        """Takes the answer's headers, names in lower case or the mapping caseless."""
        self._headers = headers

    def feed(self, data: bytes, now_s: float) -> str:
        """The text that `data` adds.

        Raises:
            StreamBroken: the stream holds an error, or an event that is none of a chat.
        """
        try:
            events = self._events.feed(data)
        except ValueError as error:
            raise StreamBroken(str(error)) from error
        return "".join(self._take(event, now_s) for event in events)

    def finish(self, now_s: float) -> Answer:
        """The answer, once the body has ended.

        Raises:
            StreamBroken: `[DONE]` has not come, or no token has.
        """
        if not self._done:
            raise StreamBroken("the stream ended before the answer did")
        if self._first_s is None or self._last_s is None:
            raise StreamBroken("the answer holds no token")
        usage = self._usage
        details = usage.prompt_tokens_details if usage else None
        return Answer(
            text=self.text,
            replica=self._headers.get(REPLICA_HEADER),
            request_id=self._headers.get(REQUEST_ID_HEADER),
            matched_tokens=_number(self._headers.get(MATCHED_TOKENS_HEADER)),
            prompt_tokens=usage.prompt_tokens if usage else None,
            cached_tokens=details.cached_tokens if details else None,
            completion_tokens=usage.completion_tokens if usage else None,
            ttft_s=self._first_s - self._sent_s,
            total_s=now_s - self._sent_s,
            tokens_per_s=_rate(usage, self._last_s - self._first_s),
            finish_reason=self._finish_reason,
        )

    def _take(self, event: bytes, now_s: float) -> str:
        if event == b"[DONE]":
            self._done = True
            return ""
        try:
            chunk = _chunk_decoder.decode(event)
        except _NOT_JSON as error:
            raise StreamBroken(f"not a stream of answers: {error}") from error
        if chunk.error is not None:
            raise StreamBroken(f"the answer broke off: {_message(chunk.error)}")
        if chunk.usage is not None:
            self._usage = chunk.usage
        if not chunk.choices:
            return ""
        choice = chunk.choices[0]
        self._finish_reason = choice.finish_reason or self._finish_reason
        delta = choice.delta
        text = delta.content or choice.text or ""
        said = bool(text or delta.reasoning or delta.reasoning_content)
        if said and self._last_s is not None:
            self._gaps_s.append(now_s - self._last_s)
        if said or choice.finish_reason:
            # The last token may add no text (an end-of-text token), yet it was generated.
            self._first_s = now_s if self._first_s is None else self._first_s
            self._last_s = now_s
        if text:
            self._pieces.append(text)
        return text


def refused(status: int, body: bytes) -> RequestRefused:
    """The error that an answer with `status` and `body` is, in the server's own words if any."""
    try:
        words = _message(_error_decoder.decode(body).error)
    except _NOT_JSON:
        words = " ".join(body.decode("utf-8", errors="replace").split())[:200]
    return RequestRefused(f"HTTP {status}: {words or 'no reason given'}", status=status)


def _message(error: _Error | str) -> str:
    words = error if isinstance(error, str) else error.message or str(error.type or error.code)
    return " ".join(words.split())


def _number(header: str | None) -> int | None:
    return int(header) if header is not None and header.isascii() and header.isdigit() else None


def _rate(usage: Usage | None, decoding_s: float) -> float | None:
    """Tokens a second after the first one; None when there was none or no time passed."""
    if usage is None or usage.completion_tokens < 2 or decoding_s <= 0:
        return None
    return (usage.completion_tokens - 1) / decoding_s
