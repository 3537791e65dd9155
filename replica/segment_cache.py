"""Tokenisation remembered by segment, so that a conversation costs only its new message.

    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
     [1]         [user\nHi]   [2]  [\n]  [1]  [assistant\n]

A tokenizer cuts its added tokens out of a text first; each piece between them is normalised, split
and tokenised by itself. So a piece has the same tokens whatever is around it, but for one thing:
SentencePiece's space may be put before a text's first piece only. There a piece that is not the
first is tokenised behind an added token, whose id is then dropped.

Tokenizers of which this is not known are left alone, and their texts tokenised whole.

Source: Hugging Face tokenizers `added_vocabulary.rs` (`extract_and_normalize`),
`pre_tokenizers/metaspace.rs` (the only pre-tokenizer that asks where in the text a piece is).
"""

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from threading import Lock
from typing import Any

import tokenizers

from prompt.added_tokens import AddedToken, AddedTokenCutter, Cut, added_tokens_of
from prompt.vocabulary import parts_of

# Of text and ids. A conversation of 100,000 tokens takes 1 to 2 MB.
CACHE_BYTES_MAX = 64 * 1024 * 1024

# What looks at nothing but the piece it is given.
_LOCAL_NORMALIZERS = frozenset(
    {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend", "Replace", "Strip", "StripAccents"}
    | {"Nmt", "Precompiled", "ByteLevel"}
)
_LOCAL_PRE_TOKENIZERS = frozenset({"ByteLevel", "Split", "Digits", "Punctuation", "Metaspace"})
_LOCAL_MODELS = frozenset({"BPE", "Unigram"})
# Bookkeeping of one cache entry, and of one id in a list.
_ENTRY_BYTES, _ID_BYTES = 200, 8


class SegmentCache:
    """Encodes texts piece by piece, equal to encoding them whole. Safe to use from threads.

    Attributes:
        is_exact: The tokenizer is known to work by piece; if not, do not use this.
    """

    def __init__(self, backend: tokenizers.Tokenizer, bytes_max: int = CACHE_BYTES_MAX) -> None:
        """
        Args:
            bytes_max: Least recently used segments go beyond it.
        """
        self._backend = backend
        self._bytes_max = bytes_max
        description: dict[str, Any] = json.loads(backend.to_str())
        tokens = added_tokens_of(description)
        raw = [token for token in tokens if not token.normalized]
        # Where nothing normalises, tokens of normalised text are cut out of the pieces next;
        # elsewhere they stay in the pieces, for the backend to find.
        normalises = description.get("normalizer") is not None
        inner = [token for token in tokens if token.normalized and not normalises]
        self._raw = AddedTokenCutter((token.content, token) for token in raw)
        self._inner = AddedTokenCutter((token.content, token) for token in inner)
        self._lead = ""
        self.is_exact = _is_local(description, tokens)
        if _treats_first_piece_apart(description):
            self._lead = _lead(raw)
            self.is_exact = self.is_exact and bool(self._lead)
        # By what was encoded: a piece, with the lead before it where it is not a text's first.
        self._segments: OrderedDict[str, Sequence[int]] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    @property
    def bytes_held(self) -> int:
        """About what the remembered segments take up."""
        return self._bytes

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without those that a model wants around every text."""
        pieces = list(self._pieces(text))
        found = self._look_up([piece for piece in pieces if isinstance(piece, str)])
        missing = [segment for segment, ids in found.items() if ids is None]
        if missing:
            encoded = self._backend.encode_batch_fast(missing, add_special_tokens=False)
            lead = self._lead
            new = {
                segment: one.ids[1:] if lead and segment.startswith(lead) else one.ids
                for segment, one in zip(missing, encoded, strict=True)
            }
            found |= new
            self._remember(new)
        ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, int):
                ids.append(piece)
            else:
                segment_ids = found[piece]
                assert segment_ids is not None
                ids += segment_ids
        return ids

    def _pieces(self, text: str) -> Iterator[int | str]:
        """The ids of added tokens, and between them what is to be encoded."""
        if self._raw.plain and not self._inner:  # nearly always: one regular expression does it
            for index, part in enumerate(self._raw.split(text)):
                if index % 2:
                    yield self._raw.token(part).id
                elif part:
                    yield self._lead + part if index else part
            return
        for outer in self._raw.cut(text):
            if outer.token is not None:
                yield outer.token.id
                continue
            for inner in (
                self._inner.cut(outer.text) if self._inner else (Cut(outer.text, 0, None),)
            ):
                if inner.token is not None:
                    yield inner.token.id
                else:
                    yield self._lead + inner.text if outer.start + inner.start else inner.text

    def _look_up(self, segments: Sequence[str]) -> dict[str, Sequence[int] | None]:
        found: dict[str, Sequence[int] | None] = {}
        with self._lock:
            for segment in segments:
                if segment not in found:
                    ids = self._segments.get(segment)
                    found[segment] = ids
                    if ids is not None:
                        self._segments.move_to_end(segment)
        return found

    def _remember(self, new: Mapping[str, Sequence[int]]) -> None:
        with self._lock:
            for segment, ids in new.items():
                if segment not in self._segments:  # another thread may have been here
                    self._segments[segment] = ids
                    self._bytes += _size(segment, ids)
            while self._bytes > self._bytes_max:
                segment, ids = self._segments.popitem(last=False)
                self._bytes -= _size(segment, ids)

    def check(self) -> None:
        """Assert what must always hold."""
        assert self._bytes == sum(_size(text, ids) for text, ids in self._segments.items())
        assert self._bytes <= self._bytes_max


def _is_local(description: Mapping[str, Any], tokens: Sequence[AddedToken]) -> bool:
    """Whether all that a tokenizer consists of looks at one piece at a time."""
    if any(token.single_word for token in tokens):
        return False  # it looks at the characters beside it, which may be an added token's
    model = description.get("model") or {}
    return (
        model.get("type") in _LOCAL_MODELS
        and not model.get("dropout")
        and _kinds(description, "normalizer") <= _LOCAL_NORMALIZERS
        and _kinds(description, "pre_tokenizer") <= _LOCAL_PRE_TOKENIZERS
    )


def _kinds(description: Mapping[str, Any], part: str) -> set[Any]:
    return {one.get("type") for one in parts_of(description.get(part))}


def _treats_first_piece_apart(description: Mapping[str, Any]) -> bool:
    return any(
        one.get("type") == "Metaspace" and one.get("prepend_scheme") == "first"
        for one in parts_of(description.get("pre_tokenizer"))
    )


def _lead(raw: Sequence[AddedToken]) -> str:
    """The text of an added token that is found before any text whatever; empty if there is none."""
    for token in raw:
        longer = any(one.content.startswith(token.content) for one in raw if one is not token)
        if not (longer or token.lstrip or token.rstrip):
            return token.content
    return ""


def _size(segment: str, ids: Sequence[int]) -> int:
    # One to four bytes a character, by the widest one in the text.
    width = 1 if segment.isascii() else 4
    return _ENTRY_BYTES + width * len(segment) + _ID_BYTES * len(ids)
