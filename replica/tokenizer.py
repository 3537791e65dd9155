"""Text to token ids and back, with the tokenizer that a model's files carry."""

import codecs
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from prompt.errors import ModelFileError
from prompt.model_files import GgufFile, open_model_files, read_json
from prompt.vocabulary import Vocabulary, VocabularyKind, kind_of
from replica.gguf_tokenizer import tokenizer_from_gguf
from replica.segment_cache import SegmentCache

# Tokens that end an assistant's message where a model has them, whatever its files say of EOS.
# Source: llama.cpp `llama-vocab.cpp`, the list of end-of-generation tokens.
_END_OF_MESSAGE = frozenset(
    {
        "<|im_end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<end_of_turn>",
    }
)
_GGUF_EOS_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


class Tokenizer:
    """One model's tokenizer. Safe to use from several threads.

    Attributes:
        eos_token_ids: Tokens that end an answer.
        longest_token_characters: No token stands for more characters of a text.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, kind: VocabularyKind, eos_token_ids: Iterable[int]
    ) -> None:
        """
        Args:
            backend: Does the work.
            kind: How its vocabulary writes bytes.
            eos_token_ids: Tokens that end a text, beside those that end a chat message.
        """
        self._backend = backend
        added: Mapping[int, tokenizers.AddedToken] = backend.get_added_tokens_decoder()
        tokens = {token_id: token for token, token_id in backend.get_vocab().items()}
        self._vocabulary = Vocabulary.build(tokens, added, kind)
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        ends = (i for i in self._special_ids if tokens[i] in _END_OF_MESSAGE)
        self.eos_token_ids: frozenset[int] = frozenset([*ends, *eos_token_ids])
        self.vocab_size: int = backend.get_vocab_size()
        self.longest_token_characters = max(map(len, tokens.values()), default=1)
        segments = SegmentCache(backend)
        self._segments = segments if segments.is_exact else None

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """The tokenizer of the model at `path`, a GGUF file or a Hugging Face directory.

        Raises:
            ModelFileError: it is missing or not one we can build.
        """
        return cls.of(open_model_files(path))

    @classmethod
    def of(cls, files: Path | GgufFile) -> "Tokenizer":
        """The same of model files that are open already. Raises ModelFileError."""
        return _from_gguf(files) if isinstance(files, GgufFile) else _from_directory(files)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`; special tokens written in it count as such.

        Args:
            add_special_tokens: Also those that the model wants around every text (often BOS).
        """
        if self._segments is not None and not add_special_tokens:
            return self._segments.encode(text)
        # A batch of one: unlike `encode`, it lets other threads run, and finds no offsets.
        (found,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(found.ids)

    def decode(self, token_ids: list[int]) -> str:
        """The text of `token_ids`, special tokens included; broken UTF-8 as U+FFFD."""
        (text,) = self._backend.decode_batch([token_ids], skip_special_tokens=False)
        return text

    def detokenizer(self) -> "Detokenizer":
        """For the tokens of one answer, as they come."""
        return Detokenizer(self._vocabulary, self._special_ids)


class Detokenizer:
    """Tokens in one by one, text out: only whole characters, and no special tokens."""

    def __init__(self, vocabulary: Vocabulary, special_ids: frozenset[int]) -> None:
        self._vocabulary = vocabulary
        self._special_ids = special_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; empty while a character is still in pieces.

        Bytes that can never become UTF-8 turn into U+FFFD.
        """
        if token_id in self._special_ids:
            return ""
        return self._decoder.decode(self._vocabulary.detokenise((token_id,)))

    def flush(self) -> str:
        """What is still held back at the end, as U+FFFD."""
        return self._decoder.decode(b"", final=True)


def _from_directory(directory: Path) -> Tokenizer:
    file = directory / "tokenizer.json"
    raw = read_json(file)
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing more precise
        raise ModelFileError(f"{file}: {error}") from error
    backend.no_padding()
    backend.no_truncation()
    return Tokenizer(backend, kind_of(raw), _directory_eos_ids(directory, backend))


def _directory_eos_ids(directory: Path, backend: tokenizers.Tokenizer) -> set[int]:
    """What generation_config.json says, else config.json; and tokenizer_config.json's token."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        raw = _read_optional(directory / name).get("eos_token_id")
        if raw is not None:
            found = {raw} if isinstance(raw, int) else set(raw)
            break
    token = _read_optional(directory / "tokenizer_config.json").get("eos_token")
    if isinstance(token, Mapping):
        token = token.get("content")
    token_id = backend.token_to_id(token) if isinstance(token, str) else None
    return found if token_id is None else found | {token_id}


def _read_optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.exists() else {}


def _from_gguf(file: GgufFile) -> Tokenizer:
    metadata = file.metadata
    backend, kind = tokenizer_from_gguf(metadata, file.path.name)
    ids = (metadata.get(f"tokenizer.ggml.{key}") for key in _GGUF_EOS_KEYS)
    return Tokenizer(backend, kind, {i for i in ids if i is not None})
