"""Tokenisation remembered by segment, so that a conversation costs only its new message.

    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
     [1]         [user\nHi]   [2]  [\n]  [1]  [assistant\n]

Text between added tokens is tokenised independently of what is around it, as long as nothing in the
tokenizer looks beyond: no added token takes the spaces beside it, and neither normaliser nor
pre-tokenizer treats the beginning of a text in its own way. Tokenizers of which that is not known
are left alone, and their texts tokenised whole.

Source: Hugging Face tokenizers `added_vocabulary.rs` (`extract_and_normalize`): added tokens are
cut out first, each piece between them is normalised and split by itself.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import tokenizers

# Of text and ids. A conversation of 100,000 tokens takes 1 to 2 MB.
CACHE_BYTES_MAX = 64 * 1024 * 1024

# What looks at nothing beyond the piece it is given, and treats every piece alike.
_LOCAL_NORMALIZERS = frozenset({"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Sequence"})
_LOCAL_PRE_TOKENIZERS = frozenset({"ByteLevel", "Split", "Digits", "Sequence"})
# Bookkeeping of one cache entry, and of one id in a list.
_ENTRY_BYTES, _ID_BYTES = 200, 8


class SegmentCache:
    """Encodes texts piece by piece, equal to encoding them whole. Safe to use from threads."""

    def __init__(self, backend: tokenizers.Tokenizer, bytes_max: int = CACHE_BYTES_MAX) -> None:
        """
        Args:
            backend: A tokenizer for which `cuts_at_added_tokens` holds: the caller has asked.
            bytes_max: Least recently used segments go beyond it.
        """
        self._backend = backend
        self._bytes_max = bytes_max
        added: Mapping[int, tokenizers.AddedToken] = backend.get_added_tokens_decoder()
        self._added_ids = {token.content: token_id for token_id, token in added.items()}
        # The longest of those that begin at a place wins, as in the tokenizer.
        contents = sorted(filter(None, self._added_ids), key=len, reverse=True)
        self._cut = re.compile("(" + "|".join(map(re.escape, contents)) + ")") if contents else None
        self._segments: OrderedDict[str, Sequence[int]] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    @property
    def bytes_held(self) -> int:
        """About what the remembered segments take up."""
        return self._bytes

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without those that a model wants around every text."""
        # With one group, every second part is an added token.
        parts = [text] if self._cut is None else self._cut.split(text)
        found = self._look_up(parts[::2])
        missing = [segment for segment, ids in found.items() if ids is None]
        if missing:
            encoded = self._backend.encode_batch_fast(missing, add_special_tokens=False)
            new = {segment: one.ids for segment, one in zip(missing, encoded, strict=True)}
            found |= new
            self._remember(new)
        ids: list[int] = []
        for index, part in enumerate(parts):
            if index % 2:
                ids.append(self._added_ids[part])
            elif part:
                segment_ids = found[part]
                assert segment_ids is not None
                ids += segment_ids
        return ids

    def _look_up(self, segments: Sequence[str]) -> dict[str, Sequence[int] | None]:
        found: dict[str, Sequence[int] | None] = {}
        with self._lock:
            for segment in segments:
                if segment and segment not in found:
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


def cuts_at_added_tokens(backend: tokenizers.Tokenizer) -> bool:
    """Whether the text between added tokens is known to be tokenised independently."""
    description: dict[str, Any] = json.loads(backend.to_str())
    normalizer = description.get("normalizer")
    for token in description.get("added_tokens", ()):
        if token["single_word"] or token["lstrip"] or token["rstrip"]:
            return False
        if token["normalized"] and normalizer is not None:
            return False  # it is looked for after normalisation
    return _is_local(normalizer, _LOCAL_NORMALIZERS) and _is_local(
        description.get("pre_tokenizer"), _LOCAL_PRE_TOKENIZERS
    )


def _is_local(part: dict[str, Any] | None, kinds: frozenset[str]) -> bool:
    """Whether a normaliser or pre-tokenizer, with all it is made of, is of these kinds."""
    if part is None:
        return True
    if part["type"] not in kinds or part.get("add_prefix_space"):
        return False
    inner = part.get("normalizers") or part.get("pretokenizers") or ()
    return all(_is_local(one, kinds) for one in inner)


def _size(segment: str, ids: Sequence[int]) -> int:
    # One to four bytes a character, by the widest one in the text.
    width = 1 if segment.isascii() else 4
    return _ENTRY_BYTES + width * len(segment) + _ID_BYTES * len(ids)
