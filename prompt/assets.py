"""Reads what a router needs of a model: template and vocabulary, from GGUF or a HF directory."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prompt.chat_template import ChatTemplate
from prompt.errors import ModelFileError
from prompt.gguf_vocabulary import (
    description_of_gguf,
    gguf_fields,
    kind_of_gguf,
    literal_tokens,
)
from prompt.model_files import GgufFile, open_model_files, read_json
from prompt.spelling import Spelling
from prompt.vocabulary import Vocabulary, kind_of

_PACKAGE_PREFIX = "package:"

# What templates may call by name (transformers' `special_tokens_map`).
_SPECIAL_TOKENS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_GGUF_SPECIAL_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptAssets:
    """How one model's prompts are written.

    Attributes:
        chat_template: None when the model's files have none.
        vocabulary: Token ids to bytes.
        spelling: Text to the bytes of its tokens.
    """

    chat_template: ChatTemplate | None
    vocabulary: Vocabulary
    spelling: Spelling


def resolve_model_path(reference: str) -> Path:
    """The file or directory that `reference` names.

    Args:
        reference: A path, or `package:NAME/FILE` for a file inside an installed Python package.

    Raises:
        ModelFileError: there is no such file, directory or package.
    """
    if not reference.startswith(_PACKAGE_PREFIX):
        path = Path(reference).expanduser()
        if not path.exists():
            raise ModelFileError(f"model path {reference}: no such file or directory")
        return path
    package, _, file = reference.removeprefix(_PACKAGE_PREFIX).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelFileError(f"model path {reference}: no Python package {package!r} is installed")
    path = Path(spec.submodule_search_locations[0]) / file
    if not file or not path.is_file():
        raise ModelFileError(f"model path {reference}: package {package} has no file {file!r}")
    return path


def load_prompt_assets(path: Path) -> PromptAssets:
    """Template and vocabulary of the model at `path`, a GGUF file or a Hugging Face directory.

    Raises:
        ModelFileError: the files are missing or not understood; the message names which.
    """
    return prompt_assets_of(open_model_files(path))


def prompt_assets_of(files: Path | GgufFile) -> PromptAssets:
    """The same of model files that are open already. Raises ModelFileError."""
    return _from_gguf(files) if isinstance(files, GgufFile) else _from_directory(files)


def _from_gguf(file: GgufFile) -> PromptAssets:
    fields = gguf_fields(file.metadata)
    tokens: list[str] | None = fields.get("tokens")
    if tokens is None:
        raise ModelFileError(f"{file.path}: no tokenizer.ggml.tokens in the file")
    special = {
        name: tokens[token_id]
        for name, key in _GGUF_SPECIAL_TOKENS.items()
        if isinstance(token_id := fields.get(key), int) and token_id < len(tokens)
    }
    template = file.metadata.get("tokenizer.chat_template")
    return PromptAssets(
        chat_template=ChatTemplate(template, special) if template else None,
        vocabulary=Vocabulary.build(
            dict(enumerate(tokens)), literal_tokens(fields), kind_of_gguf(fields)
        ),
        spelling=Spelling(description_of_gguf(fields), str(file.path)),
    )


def _from_directory(path: Path) -> PromptAssets:
    file = path / "tokenizer.json"
    tokenizer = read_json(file)
    config_file = path / "tokenizer_config.json"
    config = read_json(config_file) if config_file.exists() else {}
    special = {
        name: text
        for name in (f"{kind}_token" for kind in _SPECIAL_TOKENS)
        if (text := _special_text(config, name)) is not None
    }
    template = _directory_template(path, config)
    if not (tokenizer.get("model") or {}).get("vocab"):
        raise ModelFileError(f"{file}: the model has no vocabulary")
    try:
        added = {entry["id"]: entry["content"] for entry in tokenizer.get("added_tokens") or ()}
        tokens = _tokens(tokenizer) | added
        vocabulary = Vocabulary.build(tokens, added, kind_of(tokenizer))
        spelling = Spelling(tokenizer, str(file))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ModelFileError(f"{file}: not a tokenizer we understand: {error!r}") from error
    return PromptAssets(
        chat_template=ChatTemplate(template, special) if template else None,
        vocabulary=vocabulary,
        spelling=spelling,
    )


def _tokens(tokenizer: Mapping[str, Any]) -> dict[int, str]:
    """Token ids and tokens of a tokenizer.json's model: BPE has a table, Unigram a list."""
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, Mapping):
        return {token_id: token for token, token_id in vocabulary.items()}
    return {token_id: token for token_id, (token, _score) in enumerate(vocabulary)}


def _special_text(config: Mapping[str, Any], key: str) -> str | None:
    """A special token in tokenizer_config.json: a string, or an object with `content`."""
    value = config.get(key)
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _directory_template(path: Path, config: Mapping[str, Any]) -> str | None:
    file = path / "chat_template.jinja"
    if file.exists():
        return file.read_text()
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None
