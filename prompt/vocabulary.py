"""Token ids to the bytes they stand for: a table, and one join.

Byte-level BPE writes each byte as a printable character (GPT-2's alphabet); SentencePiece writes
a space as `▁` and unknown bytes as `<0xAB>`. Special tokens stand for their own text, since that
is how a chat template writes them.

Source: GPT-2 `encoder.py` (`bytes_to_unicode`); SentencePiece byte fallback.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

VocabularyKind = Literal["byte_level", "sentencepiece"]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Vocabulary:
    """Maps token ids to bytes. Ids without a token (padding rows of the embedding) have none."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._token_bytes = list(token_bytes)

    @classmethod
    def build(
        cls, tokens: Mapping[int, str], special_ids: Iterable[int], kind: VocabularyKind
    ) -> "Vocabulary":
        """
        Args:
            tokens: Token id to the token as the tokenizer file writes it.
            special_ids: Ids of tokens whose text is taken literally (added and control tokens).
            kind: How the file writes the others.
        """
        special = set(special_ids)
        decode = _byte_level if kind == "byte_level" else _sentencepiece
        table = [b""] * (max(tokens, default=-1) + 1)
        for token_id, token in tokens.items():
            table[token_id] = token.encode() if token_id in special else decode(token)
        return cls(table)

    def __len__(self) -> int:
        return len(self._token_bytes)

    def detokenise(self, token_ids: Iterable[int]) -> bytes:
        """The bytes of `token_ids`, one after the other. Ids beyond the vocabulary have none."""
        table = self._token_bytes
        try:
            return b"".join([table[token_id] for token_id in token_ids])
        except IndexError:
            size = len(table)
            return b"".join([table[t] for t in token_ids if t < size])


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
    return token.replace("▁", " ").encode()
