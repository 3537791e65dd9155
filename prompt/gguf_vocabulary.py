"""A GGUF file's tokenizer keys in the terms of a tokenizer.json, as far as spelling goes.

What llama.cpp's names imply where the file is silent is here once, for router and replica.

Source: llama.cpp `llama-vocab.cpp` (names and defaults); ggml `docs/gguf.md`.
"""

from collections.abc import Mapping
from typing import Any

from prompt.vocabulary import SPACE_MARK, VocabularyKind

# gguf.TokenType: tokens whose text is literal. Only the first are special.
CONTROL, USER_DEFINED = 3, 4

# Values of tokenizer.ggml.pre whose models have BOS before every text.
_ADDS_BOS = frozenset({"llama-bpe", "llama3", "llama-v3"})
# Those whose models normalise to NFC (their tokenizer.json says so; llama.cpp leaves it out).
_NORMALISES = frozenset({"qwen2"})


def gguf_fields(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A file's `tokenizer.ggml.` keys, without that beginning: what the functions below take."""
    begin = "tokenizer.ggml."
    return {
        key.removeprefix(begin): value for key, value in metadata.items() if key.startswith(begin)
    }


def kind_of_gguf(fields: Mapping[str, Any]) -> VocabularyKind:
    """How the vocabulary writes bytes."""
    return "sentencepiece" if fields.get("model") == "llama" else "byte_level"


def normalises(fields: Mapping[str, Any]) -> bool:
    """Whether texts are brought to NFC."""
    return fields.get("model") == "gpt2" and fields.get("pre") in _NORMALISES


def begins_with_space(fields: Mapping[str, Any]) -> bool:
    """Whether every text, and what follows a special token, gets a space in front."""
    return kind_of_gguf(fields) == "sentencepiece" and bool(fields.get("add_space_prefix", True))


def tokens_around(fields: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Ids of the tokens put before and after every text, as the file or its kind of model says."""
    adds_bos = kind_of_gguf(fields) == "sentencepiece" or fields.get("pre") in _ADDS_BOS
    bos, eos = fields.get("bos_token_id"), fields.get("eos_token_id")
    before = [bos] if bos is not None and fields.get("add_bos_token", adds_bos) else []
    after = [eos] if eos is not None and fields.get("add_eos_token", False) else []
    return before, after


def literal_tokens(fields: Mapping[str, Any]) -> dict[int, bool]:
    """Ids of tokens found whole in a text, and whether they are special."""
    types: list[int] = fields.get("token_type", [])
    return {
        token_id: kind == CONTROL
        for token_id, kind in enumerate(types[: len(fields["tokens"])])
        if kind in (CONTROL, USER_DEFINED)
    }


def description_of_gguf(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer.json without vocabulary and cuts, that spells as the file's tokenizer does."""
    tokens: list[str] = fields["tokens"]
    normalizers: list[dict[str, Any]] = []
    if begins_with_space(fields):
        normalizers.append({"type": "Prepend", "prepend": SPACE_MARK})
    if kind_of_gguf(fields) == "sentencepiece":
        pattern = {"String": " "}
        normalizers.append({"type": "Replace", "pattern": pattern, "content": SPACE_MARK})
    if normalises(fields):
        normalizers.append({"type": "NFC"})
    before, after = tokens_around(fields)
    items: list[dict[str, Any]] = [{"SpecialToken": {"id": tokens[one]}} for one in before]
    items.append({"Sequence": {"id": "A"}})
    items += [{"SpecialToken": {"id": tokens[one]}} for one in after]
    return {
        "added_tokens": [
            {"id": one, "content": tokens[one], "special": special, "normalized": False}
            for one, special in literal_tokens(fields).items()
        ],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": items,
            "special_tokens": {tokens[one]: {"tokens": [tokens[one]]} for one in before + after},
        },
        "model": {"byte_fallback": kind_of_gguf(fields) == "sentencepiece"},
    }
