"""Contents: ranges of token ids, each its own; a prompt is some of them, one after the other."""

from array import array
from collections.abc import Sequence

import numpy as np

_IDS = 2**32


class ContentsExhausted(ValueError):
    """More different tokens were asked for than there are ids: ask for fewer requests."""


class ContentSpace:
    """Gives out token ids, none of them twice.

    new(3) → 0 1 2      new(2) → 3 4      new(4) → 5 6 7 8
    """

    def __init__(self) -> None:
        self._next = 0

    def new(self, tokens: int) -> range:
        """A content of so many tokens that no other content shares.

        Raises:
            ContentsExhausted: All 2³² ids are given out.
        """
        assert tokens > 0
        content = range(self._next, self._next + tokens)
        if content.stop > _IDS:
            raise ContentsExhausted(f"the workload needs more than {_IDS} different tokens")
        self._next = content.stop
        return content


def joined(contents: Sequence[range]) -> "array[int]":
    """The contents' token ids in their order: 12,000 tokens in some 10 µs."""
    tokens = array("I", bytes(4 * sum(map(len, contents))))
    view = np.frombuffer(tokens, np.uint32)
    position = 0
    for content in contents:
        end = position + len(content)
        view[position:end] = np.arange(content.start, content.stop, dtype=np.uint32)
        position = end
    return tokens


def total_tokens(contents: Sequence[range]) -> int:
    return sum(map(len, contents))
