"""Reads answers off a keep-alive connection: where each ends, and whether it is what it should be.

Routers frame an answer as they like (a length or chunks, in whatever packets); what is in it must
be all that the stand-in sent.
"""

import re

from loadtests.overhead.cases import Case
from loadtests.stand_in import WORD_END

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_GREETING = b"Hello there."


class AnswerReader:
    """Of one connection. `feed` until it says that the answer is whole, then `finish`."""

    def __init__(self, case: Case) -> None:
        self._events = case.events
        self._pieces: list[bytes] = []
        self._left: int | None = None  # bytes still to come; None: not known
        self._chunked = False

    def feed(self, data: bytes) -> bool:
        """Whether this was the last of the answer."""
        self._pieces.append(data)
        if self._chunked:
            return self._ends()
        if self._left is not None:
            self._left -= len(data)
            return self._left <= 0
        answer = b"".join(self._pieces)
        head_end = answer.find(b"\r\n\r\n")
        if head_end < 0:
            return False
        length = _LENGTH.search(answer, 0, head_end)
        if length is None:
            self._chunked = True
            return self._ends()
        self._left = head_end + 4 + int(length[1]) - len(answer)
        return self._left <= 0

    def _ends(self) -> bool:
        last = self._pieces[-1]
        if len(last) < len(_LAST_CHUNK):
            last = b"".join(self._pieces[-8:])
        return last.endswith(_LAST_CHUNK)

    def finish(self) -> str:
        """What is wrong with the answer, empty if nothing; then the next one may come."""
        answer = b"".join(self._pieces)
        chunked, too_long = self._chunked, self._left is not None and self._left < 0
        self._pieces.clear()
        self._left, self._chunked = None, False
        if not answer.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
            return answer[:200].decode(errors="replace")
        if too_long:
            return "more than one answer"
        if self._whole(answer) or (chunked and self._whole(without_chunks(answer))):
            return ""
        if self._events is None:
            return "a truncated answer"
        return f"a stream with {answer.count(WORD_END)} events of {self._events}"

    def _whole(self, answer: bytes) -> bool:
        if self._events is None:
            return _GREETING in answer
        return answer.count(WORD_END) == self._events and b"[DONE]" in answer[-200:]


def without_chunks(answer: bytes) -> bytes:
    """The body of a chunked answer; what comes before a chunk that makes no sense."""
    body: list[bytes] = []
    position = answer.find(b"\r\n\r\n") + 4
    while True:
        end = answer.find(b"\r\n", position)
        try:
            size = int(answer[position:end].split(b";")[0], 16)
        except ValueError:
            return b"".join(body)
        if size == 0 or end < 0:
            return b"".join(body)
        body.append(answer[end + 2 : end + 2 + size])
        position = end + 4 + size
