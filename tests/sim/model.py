"""The simulated model: a byte a token, and an answer that anyone can reckon from the prompt.

The next token follows from all before it, so that an answer that goes on elsewhere, from the same
tokens or the same text, must go on with exactly what was to come.
"""

from array import array
from collections.abc import Sequence
from typing import cast
from zlib import crc32

from prompt.assets import PromptAssets
from prompt.spelling import Spelling
from prompt.vocabulary import Vocabulary
from tests.support.byte_model import END, START, TEMPLATE, ByteTokenizer

NAME = "m"
TOKENIZER = ByteTokenizer()
_END_PERCENT = 3
_BLANK_PERCENT = 12


class _ByteSpelling:
    def spell(self, text: str, *, add_special_tokens: bool) -> bytes:
        return text.encode()


ASSETS = PromptAssets(
    chat_template=TEMPLATE,
    vocabulary=Vocabulary(
        [bytes([one]) for one in range(END)] + [b"<|im_end|>", b"<|im_start|>"][: START - END + 1]
    ),
    spelling=cast(Spelling, _ByteSpelling()),
)


def next_token(history: Sequence[int]) -> int:
    drawn = crc32(array("H", history).tobytes())
    percent = drawn % 100
    if percent < _END_PERCENT:
        return END
    if percent < _END_PERCENT + _BLANK_PERCENT:
        return ord(" ")
    return ord("a") + drawn // 100 % 26


def answer_to(prompt: Sequence[int], max_tokens: int) -> list[int]:
    """All tokens of the answer, its END with them."""
    history = list(prompt)
    for _ in range(max_tokens):
        history.append(next_token(history))
        if history[-1] == END:
            break
    return history[len(prompt) :]


def text_of(tokens: Sequence[int]) -> str:
    return bytes(one for one in tokens if one < END).decode()
