"""Builds a tokenizer from a GGUF file's metadata, equal to the one it was converted from.

The file says how text is cut before the merges only by a name (`tokenizer.ggml.pre`); what each
name means is llama.cpp's convention.

Source: llama.cpp `llama-vocab.cpp` (names, regular expressions, defaults); ggml `docs/gguf.md`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from prompt.gguf_vocabulary import (
    begins_with_space,
    gguf_fields,
    kind_of_gguf,
    literal_tokens,
    normalises,
    tokens_around,
)
from prompt.vocabulary import SPACE_MARK, VocabularyKind
from replica.models.errors import UnsupportedTokenizer

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS_AND_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_WORDS_AND_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_WORDS_AND_SPACES}"
# llama.cpp's "default" cuts by these in turn.
_DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)

PreTokenizer = Any  # tokenizers has no common base class in its stubs


def _byte_level(use_regex: bool) -> PreTokenizer:
    """Bytes to GPT-2's alphabet, after GPT-2's own cuts if `use_regex`."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _split(*patterns: str) -> PreTokenizer:
    cuts: list[PreTokenizer] = [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns
    ]
    return pre_tokenizers.Sequence([*cuts, _byte_level(use_regex=False)])


def _digits_then_gpt2() -> PreTokenizer:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, _byte_level(use_regex=True)])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scheme:
    """What a value of tokenizer.ggml.pre means.

    Attributes:
        cut: Makes the pre-tokenizer.
        whole_words_first: Take a word that is a token as it is, whatever the merges say.
    """

    cut: Callable[[], PreTokenizer]
    whole_words_first: bool = False


_LLAMA3_SCHEME = _Scheme(cut=lambda: _split(_LLAMA3), whole_words_first=True)
_SCHEMES = {
    "smollm": _Scheme(cut=_digits_then_gpt2),
    "gpt-2": _Scheme(cut=lambda: _byte_level(use_regex=True)),
    "llama-bpe": _LLAMA3_SCHEME,
    "llama3": _LLAMA3_SCHEME,
    "llama-v3": _LLAMA3_SCHEME,
    "qwen2": _Scheme(cut=lambda: _split(_QWEN2)),
    "default": _Scheme(cut=lambda: _split(*_DEFAULT)),
}


def tokenizer_from_gguf(
    metadata: Mapping[str, Any], where: str
) -> tuple[Tokenizer, VocabularyKind]:
    """The tokenizer that `metadata` describes, and how its vocabulary writes bytes.

    Args:
        metadata: A GGUF file's key-value pairs.
        where: The file's name, for errors.

    Raises:
        UnsupportedTokenizer: a key is missing, or has a value we do not know.
    """
    fields = gguf_fields(metadata)
    if "tokens" not in fields:
        raise UnsupportedTokenizer(f"{where}: no tokenizer.ggml.tokens in the file")
    model = fields.get("model")
    if model == "gpt2":
        tokenizer = _byte_level_bpe(fields, where)
    elif model == "llama":
        tokenizer = _sentencepiece_bpe(fields, where)
    else:
        raise UnsupportedTokenizer(
            f"{where}: tokenizer.ggml.model {model!r} is not supported (gpt2 and llama are)"
        )
    _add_literal_tokens(tokenizer, fields)
    _add_template(tokenizer, fields)
    return tokenizer, kind_of_gguf(fields)


def _byte_level_bpe(fields: Mapping[str, Any], where: str) -> Tokenizer:
    pre = fields.get("pre")
    scheme = _SCHEMES.get(str(pre))
    if scheme is None:
        raise UnsupportedTokenizer(
            f"{where}: tokenizer.ggml.pre {pre!r} is not supported ({', '.join(_SCHEMES)} are)"
        )
    if "merges" not in fields:
        raise UnsupportedTokenizer(f"{where}: no tokenizer.ggml.merges in the file")
    tokenizer = Tokenizer(
        BPE(
            vocab={token: index for index, token in enumerate(fields["tokens"])},
            merges=[tuple(merge.split(" ", 1)) for merge in fields["merges"]],
            ignore_merges=scheme.whole_words_first,
        )
    )
    if normalises(fields):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = scheme.cut()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece_bpe(fields: Mapping[str, Any], where: str) -> Tokenizer:
    tokens: list[str] = fields["tokens"]
    scores = fields.get("scores")
    if scores is None or len(scores) != len(tokens):
        raise UnsupportedTokenizer(
            f"{where}: tokenizer.ggml.scores must have one score for each of {len(tokens)} tokens"
        )
    unknown = fields.get("unknown_token_id")
    tokenizer = Tokenizer(
        BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=_merges_from_scores(tokens, scores),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", SPACE_MARK)
    strip_first: list[Any] = []
    if begins_with_space(fields):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE_MARK), spaces])
        strip_first = [decoders.Strip(" ", 1, 0)]
    else:
        tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *strip_first]
    )
    return tokenizer


def _merges_from_scores(tokens: list[str], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, best-scored token first.

    SentencePiece joins whichever neighbours make the token of the highest score; as a rank of
    pairs that is the order of the scores of what they make.
    """
    index_of = {token: index for index, token in enumerate(tokens)}
    ranked: list[tuple[float, int, int, str, str]] = []
    for token, index in index_of.items():
        for cut in range(1, len(token)):
            left, right = index_of.get(token[:cut]), index_of.get(token[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[index], left, right, token[:cut], token[cut:]))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def _add_literal_tokens(tokenizer: Tokenizer, fields: Mapping[str, Any]) -> None:
    """Control and user-defined tokens are found whole in a text; only the first are special."""
    for token_id, special in literal_tokens(fields).items():
        token = AddedToken(fields["tokens"][token_id], normalized=False, special=special)
        if special:
            tokenizer.add_special_tokens([token])
        else:
            tokenizer.add_tokens([token])


def _add_template(tokenizer: Tokenizer, fields: Mapping[str, Any]) -> None:
    """BOS before and EOS after every text, where the file or its kind of model says so."""
    tokens: list[str] = fields["tokens"]
    ids_before, ids_after = tokens_around(fields)
    if not ids_before and not ids_after:
        return
    before, after = [tokens[i] for i in ids_before], [tokens[i] for i in ids_after]
    tokenizer.post_processor = TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *before, "$B", *after],
        special_tokens=[(tokens[i], i) for i in dict.fromkeys(ids_before + ids_after)],
    )
