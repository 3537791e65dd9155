"""The canonical log lines, one per request: written in batches, since a write costs like routing.

A line reaches the file at most FLUSH_S after its request is over. It looks like those of `logging`,
which takes five times as long to make one. Workers that log into one pipe do not cut each other's
lines: what is written at once is no longer than a pipe takes whole (POSIX: PIPE_BUF), or one line.
"""

import asyncio
import select
import time
from collections.abc import Iterator
from typing import TextIO

FLUSH_S = 0.05
# Reached within FLUSH_S, they are written at once.
_LINES_MAX = 1000


class RequestLog:
    """Lines for one file. Owned by the event loop that created it; `flush` it at the end."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._lines: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._second = -1
        self._stamp = ""

    def add(self, line: str) -> None:
        """Takes a line, its time stamp and end still to come."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        millisecond = int(now * 1000) % 1000
        self._lines.append(f"{self._stamp},{millisecond:03d} INFO router.requests: {line}\n")
        if len(self._lines) >= _LINES_MAX:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lines:
            lines, self._lines = self._lines, []
            for piece in _pieces(lines):
                self._file.write(piece)
                self._file.flush()


def _pieces(lines: list[str]) -> Iterator[str]:
    """Lines joined to pieces that a pipe takes whole."""
    piece: list[str] = []
    size = 0
    for line in lines:
        line_bytes = len(line.encode(errors="replace"))
        if size + line_bytes > select.PIPE_BUF and piece:
            yield "".join(piece)
            piece, size = [], 0
        piece.append(line)
        size += line_bytes
    yield "".join(piece)
