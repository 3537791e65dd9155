"""A trace's token ids as text: equal prefixes where the ids have them, and nearly as many tokens.

Each id is a word by a hash (MurmurHash3's 32-bit finaliser, Appleby 2011), the same everywhere, so
ids that are equal up to a place are texts that are equal up to there. Where ids part, each further
word is equal by chance once in 626: whole blocks of a cache never are.

A chat template adds tokens of its own. A text has as many fewer words, taken from its beginning, so
that both its tokens and what it shares with others are the trace's: the first ids are spelled by
four words that stand for all of them.

    ids          a b c d e f g h i j k …        6 tokens around a chat, all before it
    text         [abcdefghij: 4 words] k …
    the server   t t t t t t 1 2 3 4 k …
"""

from array import array
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from loadtests.replay.words import WORDS

HEAD_WORDS = 4
# Each word with the space before it: a text is one look-up, 12,000 words in some 0.1 ms.
_SPELLED = np.array([list(f" {word}".encode()) for word in WORDS], np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How many tokens the target makes of a text.

    Attributes:
        around_tokens: What its chat template and special tokens add to every prompt.
        tokens_per_word: Of the words of `words.WORDS`.
        source: Who told; None: nobody, a word is taken for a token.
    """

    around_tokens: int = 0
    tokens_per_word: float = 1.0
    source: str | None = None


UNCALIBRATED = Calibration()


class PromptWriter:
    """Pure: the same ids and arguments, the same text."""

    def __init__(self, calibration: Calibration, *, scale: float = 1.0, seed: int = 0) -> None:
        """
        Args:
            scale: Tokens of the text to tokens of the trace, above 0 and at most 1: at 0.25 every
                fourth id is taken, so that prefixes of n ids become prefixes of n / 4 words.
            seed: Another seed, other words: what the last run left in caches is not found.
        """
        assert 0 < scale <= 1
        # A tokenizer that takes several words as one token is not made up for.
        self._words_per_id = min(1.0, scale / calibration.tokens_per_word)
        self._cut = round(calibration.around_tokens / calibration.tokens_per_word)
        self._key = np.uint32(int.from_bytes(blake2b(b"%d" % seed, digest_size=4).digest()))

    def text(self, ids: "array[int]") -> str:
        """Words with a space between; at least one.

        Args:
            ids: [tokens], each below 2³², at least one.
        """
        all_ids = np.frombuffer(ids, np.uint32)
        words = max(1, round(len(ids) * self._words_per_id))
        if self._words_per_id < 1:
            all_ids = all_ids[(np.arange(words) / self._words_per_id).astype(np.int64)]
        if self._cut == 0:
            return _spelled(mixed(all_ids ^ self._key))
        head = all_ids[: self._cut + HEAD_WORDS]
        digest = blake2b((head ^ self._key).tobytes(), digest_size=4 * HEAD_WORDS).digest()
        rest = mixed(all_ids[len(head) :] ^ self._key)
        return _spelled(np.concatenate([np.frombuffer(digest, np.uint32), rest]))


def calibration_of(few: tuple[int, int], many: tuple[int, int], source: str) -> Calibration | None:
    """What two texts' lengths in (words, tokens) say; None when they make no sense."""
    (few_words, few_tokens), (many_words, many_tokens) = few, many
    tokens_per_word = (many_tokens - few_tokens) / (many_words - few_words)
    around = round(few_tokens - few_words * tokens_per_word)
    if not 0.2 <= tokens_per_word <= 5:
        return None
    return Calibration(around_tokens=max(0, around), tokens_per_word=tokens_per_word, source=source)


def probe_text(words: int, seed: int) -> str:
    """A text that no trace has, to see what the target makes of it."""
    key = np.uint32(int.from_bytes(blake2b(b"probe %d" % seed, digest_size=4).digest()))
    return _spelled(mixed(np.arange(words, dtype=np.uint32) ^ key))


def mixed(ids: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """fmix32 of MurmurHash3: each id another number, each bit of it changes half of them."""
    ids = ids ^ (ids >> np.uint32(16))
    ids = ids * np.uint32(0x85EBCA6B)
    ids ^= ids >> np.uint32(13)
    ids *= np.uint32(0xC2B2AE35)
    ids ^= ids >> np.uint32(16)
    return ids


def _spelled(numbers: NDArray[np.uint32]) -> str:
    spelled: bytes = _SPELLED[numbers % np.uint32(len(WORDS))].tobytes()
    return spelled[1:].decode("ascii")
