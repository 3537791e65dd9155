"""Tokens to text as they come: detokenised, cut at stop strings, never a partial stop string."""

from collections.abc import AsyncGenerator, Container, Sequence
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


class AnswerText:
    """One answer: its tokens in, as the engine gives them, and out what may be told of its text.

    Attributes:
        num_tokens: Taken so far, stop token included.
        finish: Why the answer ended, once it has; then there is nothing more to take.
    """

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(stops)
        self.num_tokens = 0
        self.finish: StopReason | None = None

    def take(self, token_id: int, finish: str | None) -> str:
        """The text that `token_id` lets out.

        Args:
            finish: The engine's: "stop" for a stop token, "length" for the last one there is room
                for, None for others.
        """
        self.num_tokens += 1
        # A stop token itself has no text.
        text = "" if finish == "stop" else self._matcher.feed(self._detokenizer.push(token_id))
        if self._matcher.stopped:
            self.finish = "stop"
        elif finish is not None:
            text += self.end("stop" if finish == "stop" else "length")
        return text

    def end(self, finish: StopReason) -> str:
        """What was held back, as no more tokens come. Even that may complete a stop string."""
        text = self._matcher.feed(self._detokenizer.flush())
        text += self._matcher.finish()
        self.finish = "stop" if self._matcher.stopped else finish
        return text

    def replay(
        self, token_ids: Sequence[int], stop_token_ids: Container[int], max_tokens: int | None
    ) -> int:
        """Takes tokens whose text was told before, up to the answer's end; returns how many.

        The rules are the engine's: as long as it goes by the same ones, what is held back and why
        the answer ended are what they were where the tokens were generated.

        Args:
            stop_token_ids: Tokens that end the answer.
            max_tokens: How many the answer may have; None: as many as these.
        """
        for number, token_id in enumerate(token_ids, start=1):
            at_end = "stop" if token_id in stop_token_ids else None
            if at_end is None and number == max_tokens:
                at_end = "length"
            self.take(token_id, at_end)
            if self.finish is not None:
                return number
        return len(token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some more of the answer's text.

    Attributes:
        text: May be empty on the last piece only.
        token_ids: Generated since the piece before: stop token, and those held back, included.
        completion_tokens: Of the whole answer so far, stop token included.
        finish: Why the answer ends, on its last piece.
    """

    text: str
    token_ids: list[int]
    completion_tokens: int
    cached_tokens: int
    finish: StopReason | None


async def pieces(
    generation: Generation, answer: AnswerText, times: RequestTimes
) -> AsyncGenerator[Piece, None]:
    """The text of `generation`; one piece for all tokens that arrived together, if it has text.

    Args:
        answer: Knows what was said before, if anything.

    Raises:
        ProtocolError: the engine refused the sequence, or ended.
    """
    token_ids: list[int] = []
    while answer.finish is None:
        text, cached_tokens = "", 0
        for output, arrived_s in await generation.take():
            cached_tokens = output.cached_tokens
            times.token(arrived_s, output.queue_time_s)
            token_ids.append(output.token_id)
            text += answer.take(output.token_id, output.finish)
            if answer.finish is not None:
                break
        if text or answer.finish is not None:
            yield Piece(
                text=text,
                token_ids=token_ids,
                completion_tokens=answer.num_tokens,
                cached_tokens=cached_tokens,
                finish=answer.finish,
            )
            token_ids = []


async def last_piece(answer: AnswerText, text: str) -> AsyncGenerator[Piece, None]:
    """The one piece of an answer that had ended before: `text` is what was not told of it."""
    yield Piece(
        text=text,
        token_ids=[],
        completion_tokens=answer.num_tokens,
        cached_tokens=0,
        finish=answer.finish,
    )
