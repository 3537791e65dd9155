"""What clients ask in a world, and what came of each request: the unbroken answer is known."""

from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

import msgspec

from protocol import sse
from tests.sim.model import NAME, TOKENIZER, answer_to, text_of
from tests.support.byte_model import END, TEMPLATE

_LETTERS = "abcdefghijklmnop "
_PROMPT_CHARACTERS_MAX = 240


@dataclass(slots=True, eq=False)
class Ask:
    """One request.

    Attributes:
        prompt: Its tokens, as a replica has them.
        answer: All tokens of the unbroken answer.
        sent: What the router has written of its answer.
        attempts: What the router has sent to replicas for it: (replica, whether it goes on).
        router_lost: Whether the worker that it was sent to has died since.
        slow: Whether its client has not read for a while.
        outcomes: What became of it; exactly one in the end.
    """

    number: int
    path: str
    fields: dict[str, Any]
    prompt: list[int]
    answer: list[int]
    tenant: str = ""
    priority: int | None = None
    sent: bytes = b""
    attempts: list[tuple[str, bool]] = field(default_factory=list)
    router_lost: bool = False
    slow: bool = False
    outcomes: list[str] = field(default_factory=list)

    @property
    def chat(self) -> bool:
        return self.path == "/v1/chat/completions"

    @property
    def stream(self) -> bool:
        return bool(self.fields["stream"])

    def request(self, host: str) -> bytes:
        body = msgspec.json.encode(self.fields)
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"host: {host}",
            f"x-sim-request: {self.number}",
            f"content-length: {len(body)}",
        ]
        if self.tenant:
            lines.append(f"x-warmroute-tenant: {self.tenant}")
        if self.priority is not None:
            lines.append(f"x-warmroute-priority: {self.priority}")
        if self.number % 3 == 0:
            lines.append(f"x-slo-ttft-ms: {20 + 50 * (self.number % 7)}")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def judge(self, status: int, body: bytes, *, whole: bool) -> tuple[str, str | None]:
        """The outcome of an answer as it came, and what is wrong with it, if anything."""
        if not whole:
            if not status and not self.attempts:
                return "refused", None  # the connection was closed before it was read
            wrong = self._wrong_text(_events(body).text) if status == 200 and self.stream else None
            if not self.router_lost and not self.slow and (self.stream or not status):
                wrong = wrong or "it ended without a word"
            return "cut off", wrong
        if status != 200:
            wrong = None if status in (400, 429, 500, 502, 503, 504) else "no such status"
            return f"error {status}", wrong
        if not self.stream:
            content = msgspec.json.decode(body)
            choice = content["choices"][0]
            text = choice["message"]["content"] if self.chat else choice["text"]
            return "answered", self._wrong_end(text, choice["finish_reason"], content["usage"])
        read = _events(body)
        if read.error:
            return "stream error", self._wrong_text(read.text)
        if not read.done:
            return "cut off", "the stream ended without a word"
        if read.openings != self.chat:
            return "answered", f"it began {read.openings} times"
        return "answered", self._wrong_end(read.text, read.finish, read.usage)

    def _wrong_text(self, text: str) -> str | None:
        expected = text_of(self.answer)
        return None if expected.startswith(text) else f"{text!r} is not how {expected!r} begins"

    def _wrong_end(self, text: str, finish: str | None, usage: Any) -> str | None:
        expected = text_of(self.answer)
        if text != expected:
            return f"the answer is {text!r}, and should be {expected!r}"
        if finish != ("stop" if self.answer[-1] == END else "length"):
            return f"it ended by {finish}"
        options = self.fields.get("stream_options") or {}
        if self.stream and not options.get("include_usage"):
            return None
        if usage is None:
            return "its usage is missing"
        counted = (usage["prompt_tokens"], usage["completion_tokens"])
        right = (len(self.prompt), len(self.answer))
        return None if counted == right else f"usage says {counted}, and should say {right}"

    @property
    def has_begun(self) -> bool:
        """Whether the router has written any of the answer; of a stream, any of its text."""
        _, head_end, body = self.sent.partition(b"\r\n\r\n")
        if not head_end or not self.stream or b"event-stream" not in self.sent:
            return bool(self.sent)
        payload = b"".join(body.split(b"\r\n")[1::2])  # one chunk an event, or several
        return bool(_events(payload).text)

    @property
    def resumed(self) -> bool:
        return any(goes_on for _, goes_on in self.attempts)


class _Read(NamedTuple):
    """What the events of a stream say; `openings`: how many told a role."""

    text: str
    finish: str | None
    usage: Any
    error: bool
    done: bool
    openings: int


def _events(body: bytes) -> _Read:
    text, finish, usage, error, done, openings = "", None, None, False, False, 0
    for data in sse.EventParser().feed(body):
        if data == b"[DONE]":
            done = True
            continue
        event = msgspec.json.decode(data)
        error = error or "error" in event
        usage = event.get("usage") or usage
        for choice in event.get("choices", ()):
            delta = choice.get("delta")
            text += (choice.get("text") if delta is None else delta.get("content")) or ""
            finish = choice.get("finish_reason") or finish
            openings += delta is not None and "role" in delta
    return _Read(text, finish, usage, error, done, openings)


class Asking:
    """Makes requests that share their beginnings, and conversations that grow."""

    def __init__(self, rng: Random, families: int) -> None:
        self._rng = rng
        self._families = [self._text(rng.randint(10, 120)) for _ in range(families)]
        self._chats: list[list[dict[str, str]]] = []
        self.asks: list[Ask] = []

    def next(self) -> Ask:
        rng = self._rng
        max_tokens = rng.randint(1, 40)
        fields: dict[str, Any] = {
            "model": NAME,
            "max_tokens": max_tokens,
            "stream": rng.random() < 0.75,
        }
        if fields["stream"] and rng.random() < 0.5:
            fields["stream_options"] = {"include_usage": True}
        if rng.random() < 0.1:
            fields["cache_salt"] = rng.choice(("s", "t"))
        if rng.random() < 0.5:
            path, prompt = "/v1/chat/completions", self._chat(fields)
        else:
            path, prompt = "/v1/completions", self._completion(fields)
        ask = Ask(len(self.asks), path, fields, prompt, answer_to(prompt, max_tokens))
        ask.tenant = rng.choice(("", "", "a", "b"))
        ask.priority = rng.choice((None, None, -1, 0, 5))
        if ask.chat:
            self._grow(ask)
        self.asks.append(ask)
        return ask

    def _completion(self, fields: dict[str, Any]) -> list[int]:
        text = self._rng.choice(self._families) + self._text(self._rng.randint(0, 80))
        prompt = TOKENIZER.encode(text, False)
        fields["prompt"] = prompt if self._rng.random() < 0.2 else text
        return prompt

    def _chat(self, fields: dict[str, Any]) -> list[int]:
        messages = self._rng.choice(self._chats) if self._chats and self._rng.random() < 0.6 else []
        if not messages:
            messages = [{"role": "system", "content": self._rng.choice(self._families)}]
        messages = [*messages, {"role": "user", "content": self._text(self._rng.randint(1, 30))}]
        fields["messages"] = messages
        text = TEMPLATE.render(
            messages,
            tools=None,
            add_generation_prompt=True,
            continue_final_message=False,
            variables={},
        )
        return TOKENIZER.encode(text, False)

    def _grow(self, ask: Ask) -> None:
        if len(ask.prompt) < _PROMPT_CHARACTERS_MAX:
            said = {"role": "assistant", "content": text_of(ask.answer)}
            self._chats.append([*ask.fields["messages"], said])

    def _text(self, length: int) -> str:
        return "".join(self._rng.choice(_LETTERS) for _ in range(length)) + "."
