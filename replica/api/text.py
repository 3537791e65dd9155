"""Tokens to text as they come: detokenised, cut at stop strings, never a partial stop string."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from protocol.openai import StopReason
from replica.engine.client import Generation
from replica.metrics import RequestTimes


class Detokenizer(Protocol):
    """Incremental: holds back bytes that are not whole characters yet."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str:
        """What is still held back, incomplete characters as U+FFFD."""
        ...


class StopMatcher:
    """Finds the first of several strings in a text that comes in pieces.

        fed so far   … told already …│ held back: the longest tail that begins a stop string │

    Text is held back only while it may still turn out to begin a stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """
        Args:
            stops: Non-empty strings; none of them: nothing is ever held back.
        """
        assert all(stops)
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """What may be told now. After a match `stopped` is set and there is no more to feed."""
        assert not self.stopped
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        hold = self._tail_to_hold(text)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _tail_to_hold(self, text: str) -> int:
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some more of the answer's text.

    Attributes:
        text: May be empty on the last piece only.
        completion_tokens: Generated so far, stop token included.
        finish: Why the answer ends, on its last piece.
    """

    text: str
    completion_tokens: int
    cached_tokens: int
    finish: StopReason | None


async def pieces(
    generation: Generation, detokenizer: Detokenizer, stops: Sequence[str], times: RequestTimes
) -> AsyncGenerator[Piece, None]:
    """The text of `generation`; one piece for all tokens that arrived together, if it has text.

    Raises:
        ProtocolError: the engine refused the sequence, or ended.
    """
    matcher = StopMatcher(stops)
    completion_tokens = 0
    while True:
        text, finish, cached_tokens = "", None, 0
        for output, arrived_s in await generation.take():
            completion_tokens += 1
            cached_tokens = output.cached_tokens
            times.token(arrived_s, output.queue_time_s)
            if output.finish != "stop":  # a stop token itself has no text
                text += matcher.feed(detokenizer.push(output.token_id))
            if matcher.stopped:
                finish = "stop"
            elif output.finish is not None:
                text += matcher.feed(detokenizer.flush())
                text += matcher.finish()
                finish = "stop" if matcher.stopped or output.finish == "stop" else "length"
            if finish is not None:
                break
        if text or finish is not None:
            yield Piece(
                text=text,
                completion_tokens=completion_tokens,
                cached_tokens=cached_tokens,
                finish="stop" if finish == "stop" else "length" if finish else None,
            )
        if finish is not None:
            return
