"""A text is spelled as the bytes of the tokens that Hugging Face's tokenizers make of it."""

import json
import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from prompt.gguf_vocabulary import description_of_gguf, gguf_fields
from prompt.spelling import Spelling
from prompt.vocabulary import Vocabulary, kind_of
from replica.gguf_tokenizer import tokenizer_from_gguf

PREPEND = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
BYTES = pre_tokenizers.ByteLevel.alphabet()


def sentencepiece(normalizer: Any = None, pre_tokenizer: Any = None) -> Tokenizer:
    """Every character a token or the tokens of its bytes; a few merges of spaces."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [*"▁helowrdabcIST[]./,é漢\n12", "▁▁", "▁▁▁", "▁h"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[("▁", "▁"), ("▁▁", "▁"), ("▁", "h")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    return tokenizer


def byte_level(normalizer: Any = None, prefix: bool = False) -> Tokenizer:
    vocab = {character: index for index, character in enumerate(sorted(BYTES))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def metaspace(scheme: str) -> Any:
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)


TOKENIZERS = {
    "prepend": sentencepiece(PREPEND),
    "prepend, NFKC": sentencepiece(normalizers.Sequence([normalizers.NFKC(), PREPEND])),
    "spaces only": sentencepiece(normalizers.Replace(" ", "▁")),
    "first": sentencepiece(None, metaspace("first")),
    "first, NFC": sentencepiece(normalizers.NFC(), metaspace("first")),
    "always": sentencepiece(None, metaspace("always")),
    "never": sentencepiece(None, metaspace("never")),
    "stripped": sentencepiece(normalizers.Strip(), metaspace("always")),
    "nmt": sentencepiece(normalizers.Nmt(), metaspace("first")),
    "squeezed": sentencepiece(normalizers.Replace(Regex(" {2,}"), " "), metaspace("always")),
    "bytes": byte_level(),
    "bytes, NFC": byte_level(normalizers.NFC()),
    "bytes, NFKD": byte_level(normalizers.NFKD()),
    "bytes, lower case": byte_level(normalizers.Lowercase()),
    "bytes, no accents": byte_level(
        normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    ),
    "bytes, replaced": byte_level(normalizers.Replace("l", "LL")),
    "bytes, prefix space": byte_level(prefix=True),
    "bytes, prepended": byte_level(normalizers.Prepend("> ")),
}
ADDED = {
    "plain": [AddedToken("<s>", normalized=False), AddedToken("</s>", normalized=False)],
    "stripping": [
        AddedToken("<s>", normalized=False, rstrip=True),
        AddedToken("</s>", normalized=False, lstrip=True),
        AddedToken("hello", normalized=False, single_word=True),
    ],
    "normalised": [
        AddedToken("<s>", normalized=False),
        AddedToken("he", normalized=True),
        AddedToken("o w", normalized=True, rstrip=True),
    ],
    "runs of spaces": [AddedToken("<s>", normalized=False), AddedToken("▁▁", normalized=False)],
}

pieces = st.one_of(
    st.sampled_from(
        ["<s>", "</s>", "<s", "hello", " world", "he", " ", "  ", "   ", "▁", "▁▁", "\n", "\t",
         "e\u0301", "é", "\u0301", "ﬁ", "漢", "😀", "[INST]", "İ", "ΑΣ", "\u00a0", "\u2003", "\x1c"]
    ),
    st.text(st.characters(codec="utf-8", max_codepoint=0x2FF), max_size=4),
)  # fmt: skip
texts = st.lists(pieces, max_size=10).map("".join)


def bytes_of_tokens(tokenizer: Tokenizer, ids: list[int]) -> bytes:
    tokens = {token_id: token for token, token_id in tokenizer.get_vocab().items()}
    added = tokenizer.get_added_tokens_decoder()
    kind = kind_of(json.loads(tokenizer.to_str()))
    return Vocabulary.build(tokens, added, kind).detokenise(ids)


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("name", TOKENIZERS)
@given(some=st.lists(texts, min_size=1, max_size=5))
@settings(max_examples=30)
def test_any_text_is_spelled_as_its_tokens(name: str, added: str, some: list[str]) -> None:
    tokenizer = Tokenizer.from_str(TOKENIZERS[name].to_str())
    special = [token for token in ADDED[added] if token.content.startswith("<")]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([token for token in ADDED[added] if token not in special])
    spelling = Spelling(json.loads(tokenizer.to_str()), name)
    for text in some:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert spelling.spell(text) == bytes_of_tokens(tokenizer, ids), repr(text)


def test_bos_and_eos_are_spelled_where_the_tokenizer_adds_them() -> None:
    tokenizer = sentencepiece(PREPEND)
    tokenizer.add_special_tokens([AddedToken("<s>", normalized=False), AddedToken("</s>")])
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(),
            processors.TemplateProcessing(
                single="<s> $A </s>",
                pair="$A $B",
                special_tokens=[("<s>", 1), ("</s>", 2)],
            ),
        ]
    )
    spelling = Spelling(json.loads(tokenizer.to_str()), "test")
    for text in ("hello", " hello", "<s>hello", ""):
        ids = tokenizer.encode(text).ids
        assert spelling.spell(text, add_special_tokens=True) == bytes_of_tokens(tokenizer, ids)


def gguf_metadata(model: str, **more: Any) -> dict[str, Any]:
    if model == "llama":
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        kinds = [2, 3, 3, *[6] * 256]
    else:
        tokens, kinds = ["<unk>", "<s>", "</s>"], [2, 3, 3]
    letters = sorted(BYTES) if model == "gpt2" else [*"▁helowrd▁é"[:-2]]
    tokens, kinds = tokens + letters, kinds + [1] * len(letters)
    fields = {
        "model": model,
        "tokens": tokens,
        "token_type": kinds,
        "scores": [0.0] * len(tokens),
        "merges": [],
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in fields.items()}


@pytest.mark.parametrize(
    "metadata",
    [
        gguf_metadata("llama"),
        gguf_metadata("llama", add_space_prefix=False, add_eos_token=True),
        gguf_metadata("llama", add_bos_token=False),
        gguf_metadata("gpt2", pre="llama-bpe"),
        gguf_metadata("gpt2", pre="qwen2", add_bos_token=False),
        gguf_metadata("gpt2", pre="smollm"),
    ],
    ids=["llama", "no space, EOS", "no BOS", "llama 3", "qwen 2", "smollm"],
)
@given(text=texts)
def test_a_gguf_file_is_spelled_as_our_replica_tokenises_it(
    metadata: dict[str, Any], text: str
) -> None:
    tokenizer, _ = tokenizer_from_gguf(metadata, "a.gguf")
    spelling = Spelling(description_of_gguf(gguf_fields(metadata)), "a.gguf")
    for special in (True, False):
        ids = tokenizer.encode(text, add_special_tokens=special).ids
        expected = bytes_of_tokens(tokenizer, ids)
        assert spelling.spell(text, add_special_tokens=special) == expected


@pytest.mark.parametrize(
    "description",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": r"\p{Zs}"}, "content": " "}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "[[:space:]]"}, "content": "_"}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "^a"}, "content": "_"}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "b{,2}"}, "content": "_"}},
        {"pre_tokenizer": {"type": "WhitespaceSplit"}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits"}, {"type": "ByteLevel", "add_prefix_space": True}]}},
    ],
    ids=["charsmap", "regular expression", "class", "anchor", "up to", "drops spaces", "removes",
         "space before each cut"],
)  # fmt: skip
def test_what_is_not_understood_is_said_and_left_out(
    description: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        spelling = Spelling(description, "model/tokenizer.json")
    (record,) = caplog.records
    assert "model/tokenizer.json" in record.getMessage()
    assert spelling.spell("a  b é") == "a  b é".encode()


def test_a_text_of_endless_pieces_is_spelled_as_far_as_conversations_go() -> None:
    spelling = Spelling(
        {
            "normalizer": {"type": "Prepend", "prepend": "▁"},
            "model": {"byte_fallback": True},
            "added_tokens": [{"id": 1, "content": "<s>", "normalized": False}],
        },
        "a",
    )
    assert spelling.spell("<s>a" * 3) == b"<s> a" * 3
    spelled = spelling.spell("<s>a" * 1_000_000)
    assert spelled.startswith(b"<s> a" * 10_000)
    assert spelled.endswith(b"<s>a<s>a")
    assert len(spelled) == 4_000_000 + 10_000
