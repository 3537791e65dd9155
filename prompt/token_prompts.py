"""Prompts given as token ids, to bytes: what was spelled before is remembered in pieces.

A conversation comes again with every turn, and looking up each of its tokens takes three times as
long as finding it 64 tokens at a time. A piece's key is its ids themselves: nothing can collide.
"""

from array import array
from collections.abc import Sequence
from typing import Any

from prompt.vocabulary import Vocabulary

_PIECE_TOKENS = 64
# A piece: 64 ids of 4 bytes, about 270 bytes of text, two objects and an entry.
_PIECE_BYTES = 700


class TokenPrompts:
    """Token ids to bytes, equal to `Vocabulary.detokenise`."""

    def __init__(self, vocabulary: Vocabulary, memory_bytes: int = 32 * 1024**2) -> None:
        self._vocabulary = vocabulary
        # Two generations: what is found among the old moves to the new, and when these are half
        # of what there may be, the old are dropped.
        self._pieces_max = max(memory_bytes // _PIECE_BYTES // 2, 1)
        self._new: dict[bytes, bytes] = {}
        self._old: dict[bytes, bytes] = {}

    def text(self, token_ids: Sequence[Any]) -> bytes | None:
        """The bytes of these tokens; None if they are not all token ids.

        (True and False pass for 1 and 0: to look at every type takes longer than all the rest, and
        an engine will refuse them anyway.)
        """
        try:
            ids = array("I", token_ids)
        except (TypeError, OverflowError):
            return None
        raw, width = ids.tobytes(), ids.itemsize * _PIECE_TOKENS
        texts = []
        for start in range(0, len(raw), width):
            key = raw[start : start + width]
            text = self._new.get(key)
            if text is None:
                text = self._learn(key)
            texts.append(text)
        return b"".join(texts)

    def _learn(self, key: bytes) -> bytes:
        text = self._old.get(key)
        if text is None:
            text = self._vocabulary.detokenise(array("I", key))
        if len(self._new) >= self._pieces_max:
            self._old, self._new = self._new, {}
        self._new[key] = text
        return text
