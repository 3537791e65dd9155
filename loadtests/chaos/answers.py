"""An answer as a client sees it, and what it lacks beside the unbroken one."""

from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from protocol.openai import ChatChoice, ChatChunk, ChatResponse, CompletionResponse, Usage
from protocol.sse import EventParser

_DONE = b"[DONE]"
_SHOWN = 40

_chat = msgspec.json.Decoder(ChatResponse)
_completion = msgspec.json.Decoder(CompletionResponse)
_chat_chunk = msgspec.json.Decoder(ChatChunk)
_any = msgspec.json.Decoder()


class Kind(StrEnum):
    """How a request was lost."""

    FAILED = "failed plain request"
    LOST = "lost stream"
    ALTERED = "altered answer"
    CUT = "cut by worker"  # its router process was killed: no loss of the others' making


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """One answer that was not what it should have been; `what` says how."""

    kind: Kind
    what: str


@dataclass(slots=True, kw_only=True)
class Answer:
    """What was said, added up over its events.

    Attributes:
        status: None: the connection broke before one was told.
        text: All of it.
        finishes: Every finish_reason told; an answer has one.
        usages: Every usage told.
        names: Every (id, created, model) told; an answer has one.
        indices: Every choice's index; only 0 was asked for.
        openings: How many events told a role.
        done: Whether it came to its end: a whole body, or [DONE].
        error: The error event or body it ended with, or what broke the connection.
        cut: Whether `error` is a broken connection, not something that was said.
    """

    status: int | None = 200
    text: str = ""
    finishes: list[str] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)
    names: set[tuple[str, int, str]] = field(default_factory=set)
    indices: set[int] = field(default_factory=set)
    openings: int = 0
    done: bool = False
    error: str | None = None
    cut: bool = False


class StreamReader:
    """Bytes of a streamed answer in, the answer so far in `answer`."""

    def __init__(self, *, chat: bool) -> None:
        self.answer = Answer()
        self._chat = chat
        self._parser = EventParser()

    def feed(self, data: bytes) -> None:
        for event in self._parser.feed(data):
            self._take(event)

    def _take(self, event: bytes) -> None:
        answer = self.answer
        if answer.done:
            answer.error = f"after [DONE] it went on: {_shown(event)}"
        elif event == _DONE:
            answer.done = True
        elif b'"error"' in event and "error" in _any.decode(event):
            answer.error = _shown(event)
        elif self._chat:
            chunk = _chat_chunk.decode(event)
            self._add(chunk.id, chunk.created, chunk.model, chunk.usage)
            for choice in chunk.choices:
                answer.openings += choice.delta.role is not None
                self._say(choice.index, choice.delta.content or "", choice.finish_reason)
        else:
            piece = _completion.decode(event)
            self._add(piece.id, piece.created, piece.model, piece.usage)
            for one in piece.choices:
                self._say(one.index, one.text, one.finish_reason)

    def _add(self, name: str, created: int, model: str, usage: Usage | None) -> None:
        self.answer.names.add((name, created, model))
        if usage is not None:
            self.answer.usages.append(usage)

    def _say(self, index: int, text: str, finish: str | None) -> None:
        answer = self.answer
        if answer.finishes and text:
            answer.error = f"after its finish_reason it went on: {text!r}"
        answer.indices.add(index)
        answer.text += text
        if finish is not None:
            answer.finishes.append(finish)


def plain_answer(status: int, body: bytes, *, chat: bool) -> Answer:
    """The answer in a whole body."""
    answer = Answer(status=status)
    if status != 200:
        answer.error = _shown(body)
        return answer
    whole = _chat.decode(body) if chat else _completion.decode(body)
    answer.done = True
    answer.names.add((whole.id, whole.created, whole.model))
    if whole.usage is not None:
        answer.usages.append(whole.usage)
    for choice in whole.choices:
        if isinstance(choice, ChatChoice):
            answer.text += choice.message.content or ""
            answer.openings += 1
        else:
            answer.text += choice.text
        answer.indices.add(choice.index)
        if choice.finish_reason is not None:
            answer.finishes.append(choice.finish_reason)
    return answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The unbroken answer to a case."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


def reference_of(answer: Answer) -> Reference:
    """What later answers must equal. The answer is a plain one that a quiet replica gave."""
    assert answer.done, answer
    (usage,), (finish,) = answer.usages, answer.finishes
    return Reference(
        text=answer.text,
        finish_reason=finish,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
    )


def loss_of(
    answer: Answer, reference: Reference, *, chat: bool, stream: bool, usage: bool
) -> Loss | None:
    """How `answer` was lost; None: it is the unbroken one.

    Args:
        usage: Whether a stream was to tell its token counts; a plain answer always does.
    """
    if answer.status != 200 or answer.error is not None or not answer.done:
        what = answer.error or "it ended before [DONE]"
        status = f"status {answer.status}" if answer.status is not None else "no status"
        if stream:
            said = f"{status}, {len(answer.text)} characters"
            return Loss(kind=Kind.LOST, what=f"{said}: {what}")
        return Loss(kind=Kind.FAILED, what=f"{status}: {what}")
    differences = [
        difference_of_texts(reference.text, answer.text),
        _difference("finish_reason", [reference.finish_reason], answer.finishes),
        _difference("usages", 1 if usage or not stream else 0, len(answer.usages)),
        *(
            _difference(name, getattr(reference, name), getattr(told, name))
            for told in answer.usages
            for name in ("prompt_tokens", "completion_tokens")
        ),
        _difference("names of the answer", 1, len(answer.names)),
        _difference("indices", {0}, answer.indices),
        _difference("roles told", 1 if chat else 0, answer.openings),
    ]
    found = [one for one in differences if one is not None]
    return Loss(kind=Kind.ALTERED, what="; ".join(found)) if found else None


def difference_of_texts(expected: str, got: str) -> str | None:
    """Where the texts part, and both from a little before there; None when they are equal."""
    if expected == got:
        return None
    pairs = zip(expected, got, strict=False)
    shorter = min(len(expected), len(got))
    at = next((index for index, (a, b) in enumerate(pairs) if a != b), shorter)
    start, end = max(0, at - _SHOWN // 2), at + _SHOWN
    return (
        f"text from character {at} of {len(expected)} (got {len(got)}): "
        f"expected {expected[start:end]!r}, got {got[start:end]!r}"
    )


def _difference(what: str, expected: object, got: object) -> str | None:
    return None if expected == got else f"{what}: expected {expected}, got {got}"


def _shown(data: bytes) -> str:
    return data[:300].decode("utf-8", "replace")
