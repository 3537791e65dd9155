"""Cuts a text at a tokenizer's added tokens, as the tokenizer itself does before anything else.

    "<s>Hi <tool>  there"  →  "<s>" | "Hi " | "<tool>" (with the spaces it strips) | "there"

Source: Hugging Face tokenizers `added_vocabulary.rs` (`find_matches`): of the tokens that begin at
a place the longest wins; `lstrip` and `rstrip` take the whitespace beside a token; `single_word`
tokens count only between characters that are none of a word.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

# Unicode's White_Space, as in Rust; Python's str.strip also takes the separators U+001C to U+001F.
WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_SPACES = re.compile(f"[{WHITE_SPACE}]*")


class AddedToken(NamedTuple):
    """One entry of `added_tokens` in a tokenizer.json.

    `normalized` tokens are looked for in the normalised text, the others before normalising.
    """

    content: str
    id: int
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class Cut(NamedTuple):
    """A piece of a text: an added token, or what is between two of them (then `token` is None).

    `start` is where in the text it begins.
    """

    text: str
    start: int
    token: AddedToken | None


def added_tokens_of(description: Mapping[str, Any]) -> list[AddedToken]:
    """The added tokens of a tokenizer.json, but for those without text, which are never found."""
    return [
        AddedToken(**{name: entry[name] for name in AddedToken._fields if name in entry})
        for entry in description.get("added_tokens") or ()
        if entry["content"]
    ]


class AddedTokenCutter:
    """Finds a set of added tokens in texts."""

    def __init__(self, tokens: Iterable[tuple[str, AddedToken]]) -> None:
        """
        Args:
            tokens: What to look for, and the token it is; usually its content.
        """
        self._tokens = dict(tokens)
        self._plain = not any(
            token.lstrip or token.rstrip or token.single_word for token in self._tokens.values()
        )
        found_first = sorted(self._tokens, key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(re.escape, found_first))})")

    def __bool__(self) -> bool:
        """Whether there is anything to look for."""
        return bool(self._tokens)

    @property
    def plain(self) -> bool:
        """Whether a token is found wherever its text is, and stands for nothing but its text."""
        return self._plain

    def begins(self, text: str) -> bool:
        """Whether a plain token is the first thing in `text`."""
        return bool(self._tokens) and self._pattern.match(text) is not None

    def split(self, text: str) -> list[str]:
        """The text between plain tokens and, at odd places, the tokens."""
        return self._pattern.split(text) if self._tokens else [text]

    def token(self, text: str) -> AddedToken:
        """The token that `split` found as `text`."""
        return self._tokens[text]

    def cut(self, text: str) -> list[Cut]:
        """All pieces of `text` in order; whitespace that a token strips is in none of them."""
        if not self._tokens:
            return [Cut(text, 0, None)] if text else []
        cuts: list[Cut] = []
        done = 0
        for match in self._pattern.finditer(text):
            start, end = match.span()
            token = self._tokens[match.group()]
            if token.single_word and not _stands_alone(text, start, end):
                continue
            if token.lstrip:
                start = done + len(text[done:start].rstrip(WHITE_SPACE))
            if token.rstrip:
                blank = _SPACES.match(text, end)
                assert blank is not None, "it matches nothing, too"
                end = blank.end()
            if done < start:
                cuts.append(Cut(text[done:start], done, None))
            cuts.append(Cut(match.group(), start, token))
            done = end
        if done < len(text):
            cuts.append(Cut(text[done:], done, None))
        return cuts


def _stands_alone(text: str, start: int, end: int) -> bool:
    before = start > 0 and _is_of_a_word(text[start - 1])
    return not before and not (end < len(text) and _is_of_a_word(text[end]))


def _is_of_a_word(character: str) -> bool:
    """What Rust's `\\w` matches (Unicode TS 18, annex C), but for a few circled letters."""
    kind = unicodedata.category(character)
    return kind[0] in "LM" or kind in ("Nd", "Nl", "Pc") or character in "\u200c\u200d"
