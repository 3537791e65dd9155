"""A head as it came last on a connection, so that one like it need not be read again.

    POST /v1/… HTTP/1.1␍␊host: …␍␊content-length: │1234│␍␊content-type: …␍␊␍␊│{"model": …
    └──────────────── before ────────────────────┘    └────── after ──────┘ body

Clients and replicas say the same from message to message, but for the length of the body. What is
made of a head depends on its bytes alone, so of equal bytes the same can be made without a parser.
"""

import re

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)[ \t]*\r\n", re.IGNORECASE)
_HEAD_END = b"\r\n\r\n"


class KnownHead:
    """The bytes around the length of a body."""

    __slots__ = ("_after", "_after_at_most", "_before", "_length_at")

    def __init__(self, before: bytes, after: bytes, digits: int) -> None:
        self._before = before
        self._after = after
        self._length_at = len(before)
        self._after_at_most = len(before) + digits + len(after)

    @staticmethod
    def of(data: bytes, length: int) -> "KnownHead | None":
        """Of the head that `data` begins with, whose body has this length; None: it is not to be
        found there."""
        end = data.find(_HEAD_END) + len(_HEAD_END)
        found = _LENGTH.search(data, 0, end)
        if found is None or int(found[1]) != length:
            return None
        start, stop = found.span(1)
        return KnownHead(data[:start], data[stop:end], stop - start)

    def body_in(self, data: bytes) -> tuple[int, int] | None:
        """Where the body begins and ends, in data that begins with such a head and has all of it.

        A head longer than the known one is not known: it may be too long.
        """
        start = self._length_at
        at = data.find(self._after, start, self._after_at_most)
        if at < 0 or not data.startswith(self._before):
            return None
        length = data[start:at]
        if not length.isdigit():
            return None
        begin = at + len(self._after)
        end = begin + int(length)
        return (begin, end) if end <= len(data) else None
