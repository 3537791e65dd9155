"""Reads what a router needs of a model: template and vocabulary, from GGUF or a HF directory."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prompt.chat_template import ChatTemplate
from prompt.errors import ModelFileError
from prompt.model_files import GgufFile, open_model_files, read_json
from prompt.vocabulary import Vocabulary, VocabularyKind

_PACKAGE_PREFIX = "package:"

# gguf.TokenType: tokens whose text is literal.
_GGUF_CONTROL, _GGUF_USER_DEFINED = 3, 4


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptAssets:
    """How one model's prompts are written.

    Attributes:
        chat_template: None when the model's files have none.
        vocabulary: Token ids to bytes.
        bos_text: What the tokenizer puts before a plain completion's prompt; often empty.
    """

    chat_template: ChatTemplate | None
    vocabulary: Vocabulary
    bos_text: str


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
    path, read = file.path, file.metadata.get
    tokens: list[str] | None = read("tokenizer.ggml.tokens")
    if tokens is None:
        raise ModelFileError(f"{path}: no tokenizer.ggml.tokens in the file")
    types: list[int] = read("tokenizer.ggml.token_type", [])
    kind: VocabularyKind = (
        "sentencepiece" if read("tokenizer.ggml.model") == "llama" else "byte_level"
    )
    special = [i for i, t in enumerate(types) if t in (_GGUF_CONTROL, _GGUF_USER_DEFINED)]

    def token_text(key: str) -> str:
        token_id = read(key)
        return tokens[token_id] if isinstance(token_id, int) and token_id < len(tokens) else ""

    bos, eos = token_text("tokenizer.ggml.bos_token_id"), token_text("tokenizer.ggml.eos_token_id")
    template = read("tokenizer.chat_template")
    return PromptAssets(
        chat_template=ChatTemplate(template, bos_token=bos, eos_token=eos) if template else None,
        vocabulary=Vocabulary.build(dict(enumerate(tokens)), special, kind),
        bos_text=bos if read("tokenizer.ggml.add_bos_token", kind == "sentencepiece") else "",
    )


def _from_directory(path: Path) -> PromptAssets:
    tokenizer = read_json(path / "tokenizer.json")
    config_file = path / "tokenizer_config.json"
    config = read_json(config_file) if config_file.exists() else {}
    model = tokenizer.get("model", {})
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict):
        raise ModelFileError(f"{path}/tokenizer.json: only BPE vocabularies are understood")
    tokens = {token_id: token for token, token_id in vocabulary.items()}
    added = {entry["id"]: entry["content"] for entry in tokenizer.get("added_tokens", [])}
    bos, eos = _special_text(config, "bos_token"), _special_text(config, "eos_token")
    template = _directory_template(path, config)
    return PromptAssets(
        chat_template=ChatTemplate(template, bos_token=bos, eos_token=eos) if template else None,
        vocabulary=Vocabulary.build(
            tokens | added, added, "sentencepiece" if model.get("byte_fallback") else "byte_level"
        ),
        bos_text=bos if _adds_bos(tokenizer, config, bos) else "",
    )


def _special_text(config: Mapping[str, Any], key: str) -> str:
    """A special token in tokenizer_config.json: a string, or an object with `content`."""
    value = config.get(key)
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _directory_template(path: Path, config: Mapping[str, Any]) -> str | None:
    file = path / "chat_template.jinja"
    if file.exists():
        return file.read_text()
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _adds_bos(tokenizer: Mapping[str, Any], config: Mapping[str, Any], bos: str) -> bool:
    """Whether the post-processor puts BOS first; older files say so in add_bos_token."""
    if not bos:
        return False
    processor = tokenizer.get("post_processor") or {}
    processors = processor.get("processors", [processor])
    for one in processors:
        single = one.get("single") or []
        if one.get("type") == "TemplateProcessing" and single:
            first = single[0].get("SpecialToken", {})
            return bool(first.get("id") == bos)
    return bool(config.get("add_bos_token", False))
