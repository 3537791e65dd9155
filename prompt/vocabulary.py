"""Token ids to the bytes they stand for: a table, and one join.

Byte-level BPE writes each byte as a printable character (GPT-2's alphabet); SentencePiece writes
a space as `▁` and unknown bytes as `<0xAB>`. Added tokens stand for their own text, since that is
how a chat template writes them.

Source: GPT-2 `encoder.py` (`bytes_to_unicode`); SentencePiece byte fallback.
"""

import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal

VocabularyKind = Literal["byte_level", "sentencepiece"]

SPACE_MARK = "▁"
"""SentencePiece's way to write a space (U+2581)."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Vocabulary:
    """Maps token ids to bytes. Ids without a token (padding rows of the embedding) have none."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._token_bytes = tuple(token_bytes)

    @classmethod
    def build(
        cls, tokens: Mapping[int, str], added_ids: Iterable[int], kind: VocabularyKind
    ) -> "Vocabulary":
        """
        Args:
            tokens: Token id to the token as the tokenizer file writes it.
            added_ids: Ids of added tokens (control tokens among them), which are no bytes.
            kind: How the file writes the others.
        """
        added = set(added_ids)
        decode = _byte_level if kind == "byte_level" else _sentencepiece
        table = [b""] * (max(tokens, default=-1) + 1)
        for token_id, token in tokens.items():
            is_added = token_id in added
            table[token_id] = spell_token(token, kind).encode() if is_added else decode(token)
        return cls(table)

    def __len__(self) -> int:
        return len(self._token_bytes)

    def detokenise(self, token_ids: Iterable[int]) -> bytes:
        """The bytes of `token_ids`, one after the other. Ids beyond the vocabulary have none."""
        ids = token_ids if isinstance(token_ids, list) else tuple(token_ids)
        return b"".join(self._pieces(ids))

    def detokenise_blocks(self, token_ids: Sequence[int], block_size: int) -> list[bytes]:
        """The bytes of each block of `block_size` tokens."""
        pieces, join = self._pieces(token_ids), b"".join
        return [join(pieces[at : at + block_size]) for at in range(0, len(pieces), block_size)]

    def _pieces(self, token_ids: Sequence[int]) -> Sequence[bytes]:
        table = self._token_bytes
        try:
            if len(token_ids) > 1:
                # A third faster than a comprehension.
                pieces: tuple[bytes, ...] = itemgetter(*token_ids)(table)
                return pieces
            return [table[token_id] for token_id in token_ids]
        except IndexError:
            size = len(table)
            return [table[t] if t < size else b"" for t in token_ids]


class IdVocabulary(Vocabulary):
    """Where no tokenizer is known, a token stands for its own id: four bytes.

    Then prompts given as token ids can be matched, and nothing else can.
    """

    def __init__(self) -> None:
        super().__init__(())

    def detokenise(self, token_ids: Iterable[int]) -> bytes:
        return _ids(token_ids).tobytes()

    def detokenise_blocks(self, token_ids: Sequence[int], block_size: int) -> list[bytes]:
        ids, width = _ids(token_ids), block_size
        return [ids[at : at + width].tobytes() for at in range(0, len(ids), width)]


def _ids(token_ids: Iterable[int]) -> "array[int]":
    token_ids = list(token_ids)
    try:
        return array("I", token_ids)
    except OverflowError:  # no engine has such tokens
        return array("I", [min(token_id, 2**32 - 1) for token_id in token_ids])


def spell_token(text: str, kind: VocabularyKind) -> str:
    """What a token written as `text` stands for, if no byte is meant.

    A SentencePiece vocabulary's runs of `▁` can be added tokens and pieces of text at once (Gemma):
    both are spaces.
    """
    return text.replace(SPACE_MARK, " ") if kind == "sentencepiece" else text


def kind_of(description: Mapping[str, Any]) -> VocabularyKind:
    """How the vocabulary of a tokenizer.json writes bytes."""
    parts = [
        one
        for place in ("normalizer", "pre_tokenizer", "decoder")
        for one in parts_of(description.get(place))
    ]
    if any(one.get("type") == "ByteLevel" for one in parts):
        return "byte_level"
    marks_spaces = any(
        one.get("type") == "Metaspace"
        or SPACE_MARK in (one.get("prepend"), one.get("content"))
        or one.get("pattern") == {"String": SPACE_MARK}
        for one in parts
    )
    by_bytes = (description.get("model") or {}).get("byte_fallback")
    return "sentencepiece" if by_bytes or marks_spaces else "byte_level"


def parts_of(description: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """A part of a tokenizer.json (say, its normalizer) as the sequence it may be."""
    if not description:
        return []
    if description.get("type") != "Sequence":
        return [description]
    names = ("normalizers", "pretokenizers", "decoders", "processors")
    inner = next((description[name] for name in names if name in description), ())
    return [part for one in inner for part in parts_of(one)]


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if chr(byte) not in alphabet)
    alphabet.update({chr(256 + index): byte for index, byte in enumerate(list(others))})
    return alphabet


_ALPHABET = _byte_level_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return bytes([_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()  # an added token that the file does not mark as such


def _sentencepiece(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    if byte:
        return bytes([int(byte.group(1), 16)])
    return token.replace(SPACE_MARK, " ").encode()
