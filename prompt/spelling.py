"""Text as a tokenizer's tokens spell it: what it changes before cutting a text into tokens.

The router knows what replicas hold as the bytes of their tokens. A prompt is only found there once
the same is done to it that its tokenizer does: Unicode normalisation, SentencePiece's space in
front, BOS. With `▁` for the space, as SentencePiece writes it:

    text                "<s>[INST] Hé [/INST]"                       (é as e and a combining accent)
    added tokens cut    "<s>" "[INST] Hé [/INST]"
    normalised          "<s>" "▁[INST]▁Hé▁[/INST]"                   (é as one character)
    spelled             "<s> [INST] Hé [/INST]"                      = the bytes of its tokens

What no token stands for (`<unk>`) cannot be spelled: there a match ends.

Source: Hugging Face tokenizers: `added_vocabulary.rs` (`extract_and_normalize`: added tokens are
cut out, each piece between them is normalised, normalised added tokens are cut out of that),
`pre_tokenizers/metaspace.rs` (prepend schemes), `pre_tokenizers/byte_level.rs`, `normalizers/`.
"""

import logging
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from prompt.added_tokens import WHITE_SPACE, AddedTokenCutter, Cut, added_tokens_of
from prompt.vocabulary import SPACE_MARK, VocabularyKind, kind_of, parts_of, spell_token

log = logging.getLogger(__name__)

# Which pieces of text get a space in front, unless they begin with one.
Prefix = Literal["never", "first piece", "each piece"]
UnicodeForm = Literal["NFC", "NFD", "NFKC", "NFKD"]

_PREFIXES: dict[str, Prefix] = {"first": "first piece", "always": "each piece"}
_UNICODE_FORMS: dict[str, UnicodeForm] = {
    "NFC": "NFC",
    "NFD": "NFD",
    "NFKC": "NFKC",
    "NFKD": "NFKD",
}
# A text of more pieces than any conversation has is spelled so far; there a match ends at most.
# All of it would keep whoever asks busy for seconds.
_PIECES_MAX = 20_000
# Python understands these regular expressions, and means something else than Oniguruma.
_AMBIGUOUS = re.compile(r"\[\[:|&&|\{,|\\Z|(?<![\\\[])[$^]")
# Pre-tokenizers that cut text without dropping any.
_CUTTING = frozenset({"ByteLevel", "Digits", "UnicodeScripts", "FixedLength"})
_NMT_DROPPED = re.compile("[\x01-\x08\x0b\x0e-\x1f\x7f\x8f\x9f]")
_NMT_SPACES = re.compile("[\t\n\x0c\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]")


@dataclass(frozen=True, slots=True)
class _Step:
    """One normaliser.

    Attributes:
        form: The Unicode form it brings text to, if that is what it does.
        undone: Spelling undoes what it does.
    """

    apply: Callable[[str], str]
    form: UnicodeForm | None = None
    undone: bool = False


class Spelling:
    """What one tokenizer makes of texts. Immutable; safe to share."""

    def __init__(self, description: Mapping[str, Any], where: str) -> None:
        """
        Args:
            description: A tokenizer.json, decoded; its vocabulary is not looked at.
            where: The file's name, for the log: what is not understood is left out of the
                spelling, and prompts that it changes are predicted to match less than they do.
        """
        self._where = where
        self._kind = kind_of(description)
        self._in_front = ""
        self._steps: list[_Step] = []
        for one in parts_of(description.get("normalizer")):
            self._read_normaliser(one)
        self._prefix: Prefix = "never"
        self._read_pre_tokenizers(description.get("pre_tokenizer"))
        changing = [step for step in self._steps if not step.undone]
        self._form = changing[0].form if changing else None
        one_form = not changing or (len(changing) == 1 and self._form is not None)

        tokens = added_tokens_of(description)
        self._raw = AddedTokenCutter((one.content, one) for one in tokens if not one.normalized)
        # Nothing looks at normalised text but us: what spelling undoes need not be done.
        self._undone = one_form and not any(one.normalized for one in tokens)
        # The tokenizer looks for these in normalised text, hence for their normalised content.
        normalised = {
            content: one
            for one in tokens
            if one.normalized and (content := self._normal_piece(one.content))
        }
        self._normalised = AddedTokenCutter(normalised.items())
        self._before, self._after = _special_texts(description.get("post_processor"), self._kind)
        # Text in that form (ASCII always is) is spelled as it stands, but for spaces in front.
        self._as_it_stands = (
            one_form
            and not self._in_front
            and self._raw.plain
            and self._normalised.plain
            and all(self._written(key) == self._written(one[0]) for key, one in normalised.items())
        )

    def spell(self, text: str, *, add_special_tokens: bool = False) -> bytes:
        """The bytes of the tokens of `text`.

        Args:
            add_special_tokens: With those that the model wants around every text (often BOS).
        """
        # Lone surrogates are the engine's to refuse.
        spelled = self._spelled(text).encode(errors="surrogatepass")
        return self._before + spelled + self._after if add_special_tokens else spelled

    def _spelled(self, text: str) -> str:
        if self._as_it_stands and self._prefix != "each piece" and self._has_form(text):
            text = self._written(text)
            if self._prefix == "never" or not text or text[0] == " ":
                return text
            if not self._normalised:
                return text if self._raw.begins(text) else " " + text
        return "".join(self._pieces(text))

    def _pieces(self, text: str) -> Iterator[str]:
        for number, outer in enumerate(self._raw.cut(text)):
            if number >= _PIECES_MAX:
                yield text[outer.start :]
                return
            if outer.token is not None:
                yield self._written(outer.token.content)
                continue
            for inner in self._normalised.cut(self._normal_piece(outer.text)):
                if inner.token is not None:
                    yield self._written(inner.token.content)
                    continue
                piece = self._written(inner.text)
                if piece[0] != " " and (
                    self._prefix == "each piece"
                    or (self._prefix == "first piece" and self._is_first(outer, inner))
                ):
                    yield " "
                yield piece

    def _is_first(self, outer: Cut, inner: Cut) -> bool:
        """Whether `inner`, of `outer` normalised, begins with the text's first character."""
        return outer.start == 0 and inner.start == 0 and bool(self._normal_piece(outer.text[0]))

    def _normal_piece(self, text: str) -> str:
        if not (self._undone and self._has_form(text)):
            for step in self._steps:
                text = step.apply(text)
        return self._in_front + text if text else text

    def _has_form(self, text: str) -> bool:
        return self._form is None or text.isascii() or unicodedata.is_normalized(self._form, text)

    def _written(self, text: str) -> str:
        return spell_token(text, self._kind)

    # reading tokenizer.json

    def _read_normaliser(self, one: Mapping[str, Any]) -> None:
        kind = one.get("type")
        if kind == "Prepend" and one.get("prepend") == SPACE_MARK and self._kind == "sentencepiece":
            self._in_front = SPACE_MARK
            return
        step = _step(one, self._kind)
        if step is not None:
            self._steps.append(step)
            return
        log.warning(
            "%s: normaliser %s is not understood; prompts that it changes will match less",
            self._where, kind,
        )  # fmt: skip

    def _read_pre_tokenizers(self, description: Mapping[str, Any] | None) -> None:
        for index, one in enumerate(parts_of(description)):
            kind = one.get("type")
            prefix: Prefix = "never"
            if kind == "Metaspace":
                prefix = _PREFIXES.get(one.get("prepend_scheme", "always"), "never")
                understood = one.get("replacement", SPACE_MARK) == SPACE_MARK
            elif kind in ("Split", "Punctuation"):
                understood = one.get("behavior") != "Removed"
            else:
                understood = kind in _CUTTING
                if kind == "ByteLevel" and one.get("add_prefix_space", True):
                    prefix = "each piece"
            # After another one, each of its cuts would get a space.
            if not understood or (prefix != "never" and index > 0):
                log.warning(
                    "%s: pre-tokenizer %s is not understood; prompts will match less",
                    self._where, kind,
                )  # fmt: skip
            elif prefix != "never":
                self._prefix = prefix


def _step(one: Mapping[str, Any], vocabulary: VocabularyKind) -> _Step | None:
    """The normaliser that a tokenizer.json describes; None when it is not understood."""
    kind = str(one.get("type"))
    form = _UNICODE_FORMS.get(kind)
    if form is not None:
        return _Step(lambda text: unicodedata.normalize(form, text), form=form)
    if kind == "Replace":
        return _replacing(one, vocabulary)
    if kind == "Prepend":
        prefix = str(one["prepend"])
        return _Step(lambda text: prefix + text if text else text)
    if kind == "Strip":
        return _stripping(bool(one["strip_left"]), bool(one["strip_right"]))
    if kind == "ByteLevel":  # writes bytes in GPT-2's alphabet, as the vocabulary does
        return _Step(lambda text: text, undone=True)
    if kind == "Lowercase":
        return _Step(_lower)
    if kind == "StripAccents":
        return _Step(_without_marks)
    if kind == "Nmt":
        return _Step(lambda text: _NMT_SPACES.sub(" ", _NMT_DROPPED.sub("", text)))
    return None


def _replacing(one: Mapping[str, Any], vocabulary: VocabularyKind) -> _Step | None:
    content, pattern = str(one["content"]), one["pattern"]
    if "String" in pattern:
        old = str(pattern["String"])
        marks_spaces = (old, content) == (" ", SPACE_MARK) and vocabulary == "sentencepiece"
        return _Step(lambda text: text.replace(old, content), undone=marks_spaces) if old else None
    if _AMBIGUOUS.search(pattern["Regex"]):
        return None
    try:
        expression = re.compile(pattern["Regex"])
    except re.error:  # Oniguruma knows more than Python
        return None
    return _Step(lambda text: expression.sub(lambda _: content, text))


def _stripping(left: bool, right: bool) -> _Step:
    def strip(text: str) -> str:
        text = text.lstrip(WHITE_SPACE) if left else text
        return text.rstrip(WHITE_SPACE) if right else text

    return _Step(strip)


def _lower(text: str) -> str:
    """Character by character: Python's own has another sigma for the end of a word."""
    return "".join([one.lower() for one in text]) if "Σ" in text else text.lower()


def _without_marks(text: str) -> str:
    return "".join([one for one in text if unicodedata.category(one)[0] != "M"])


def _special_texts(
    description: Mapping[str, Any] | None, vocabulary: VocabularyKind
) -> tuple[bytes, bytes]:
    """What the post-processor puts before and after every text."""
    before: list[str] = []
    after: list[str] = []
    for one in parts_of(description):
        if one.get("type") in ("BertProcessing", "RobertaProcessing"):
            before.insert(0, one["cls"][0])
            after.append(one["sep"][0])
        if one.get("type") != "TemplateProcessing":
            continue
        front: list[str] = []
        back: list[str] = []
        side = front
        for item in one.get("single") or ():
            if "Sequence" in item:
                side = back
            else:
                side += one["special_tokens"][item["SpecialToken"]["id"]]["tokens"]
        before[:0] = front
        after += back

    def spelled(texts: list[str]) -> bytes:
        return "".join([spell_token(text, vocabulary) for text in texts]).encode()

    return spelled(before), spelled(after)
