"""What a stream has said so far: its events as they passed, until somebody needs to know.

Events are kept as bytes and read only when they have become many, or when the stream broke: text
and token ids take a tenth of the room. What is kept is bounded; a longer answer cannot be resumed.
"""

from typing import Any

import msgspec

from protocol import sse
from protocol.resume import told_tokens
from router.core.answer_scan import AnswerUsage, usage_in

_READ_AT_BYTES = 64 * 1024
_TAIL_BYTES = 4096
_TAIL_EVENTS = 8
_TOKEN_BYTES = 8


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    id: str | None = None
    created: int | None = None
    model: str | None = None
    choices: list[_Choice] = []
    usage: Any = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Event)


class Said:
    """The events of one answer with one choice. To be read before looking at its attributes.

    Attributes:
        id, created, model: Of the answer, from its first event that names them.
        token_ids: All that were told; None: not all were.
        text_events: Events that brought text: as many as tokens, mostly.
        finish_reason: What it ended with, if it has been said.
        has_usage, done: Whether the last two events have come.
        obstacle: Why nobody could go on from here; None: somebody may.
        hidden: What it has said beside text, by which only token ids tell how to go on.
    """

    def __init__(self, max_bytes: int, *, wants_usage: bool) -> None:
        """
        Args:
            max_bytes: Of text and token ids to keep.
            wants_usage: Whether the answer is not whole without its usage.
        """
        self.id = ""
        self.created = 0
        self.model = ""
        self.token_ids: list[int] | None = []
        self.text_events = 0
        self._blank_events = 0  # of these, the last ones that brought nothing but blanks
        self.finish_reason: str | None = None
        self.has_usage = False
        self.done = False
        self.obstacle: str | None = None
        self.hidden: str | None = None
        self._max_bytes = max_bytes
        self._wants_usage = wants_usage
        self._text: list[str] = []
        self._kept_bytes = 0
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._read_tail = b""

    def add(self, events: bytes) -> None:
        """Whole events that were passed on."""
        self._unread.append(events)
        self._unread_bytes += len(events)
        if self._unread_bytes > _READ_AT_BYTES:
            self.read()

    def usage(self) -> AnswerUsage:
        """What the answer's last events say of it."""
        return usage_in((self._read_tail + b"".join(self._unread[-_TAIL_EVENTS:]))[-_TAIL_BYTES:])

    @property
    def text(self) -> str:
        return "".join(self._text)

    def kept_events(self, *, chat: bool) -> int:
        """Of `text_events`, those whose text a continuation by text has before it: of a chat not
        the blanks at its end, which are cut off and said again."""
        return self.text_events - self._blank_events if chat else self.text_events

    def end(self) -> bytes | None:
        """What is left to say when all has been said; None: not all has."""
        self.read()
        if self.done:
            return b""
        finished = self.finish_reason is not None and self.obstacle is None
        return sse.DONE if finished and (self.has_usage or not self._wants_usage) else None

    def read(self) -> None:
        """Takes in the events added since it was last read."""
        events = b"".join(self._unread)
        self._unread.clear()
        self._unread_bytes = 0
        self._read_tail = events[-_TAIL_BYTES:] or self._read_tail
        if self.obstacle is not None:
            return
        text_before = len(self._text)
        try:
            told = told_tokens(events)
            for data in sse.EventParser(2 * len(events) + 2).feed(events):
                self._take(data)
        except ValueError as error:  # msgspec's are, too
            self.obstacle = f"its events cannot be read: {error}"
            return
        if len(self._text) > text_before and not told:
            self.token_ids = None
        if self.token_ids is not None:
            self.token_ids += told
        self._kept_bytes += len(told) * _TOKEN_BYTES
        self._kept_bytes += sum(len(text) for text in self._text[text_before:])
        self._text[text_before:] = ["".join(self._text[text_before:])]
        if self._kept_bytes > self._max_bytes:
            self.obstacle = f"it is longer than {self._max_bytes} bytes"
            self._text.clear()
            self.token_ids = None

    def _take(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.done = True
            return
        event = _decoder.decode(data)
        if not self.id and event.id:
            self.id, self.created = event.id, event.created or 0
            self.model = event.model or ""
        self.has_usage = self.has_usage or (event.usage is not None and not event.choices)
        if event.error is not None:
            self.obstacle = "it told of an error"
        for choice in event.choices:
            self._take_choice(choice)

    def _take_choice(self, choice: _Choice) -> None:
        text, delta = choice.text, choice.delta
        if delta is not None:
            text = delta.content
            if delta.reasoning or delta.reasoning_content:
                self.hidden = "it has reasoned"
            elif delta.tool_calls or delta.function_call or delta.refusal:
                self.hidden = "it has called a tool"
        if choice.index != 0:
            self.obstacle = "it has several choices"
        if text:
            self.text_events += 1
            self._blank_events = self._blank_events + 1 if text.isspace() else 0
            self._text.append(text)
        if choice.finish_reason is not None:
            self.finish_reason = choice.finish_reason
