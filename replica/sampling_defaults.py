"""How to sample where a client does not say: what a model's generation_config.json recommends.

Source: vLLM's `--generation-config auto`, which takes the same fields.
"""

import logging
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from prompt.errors import ModelFileError
from prompt.model_files import read_json

_log = logging.getLogger(__name__)

_FILE = "generation_config.json"

# Fields that would change answers and are not applied, with the value that asks for nothing.
_NOT_APPLIED = {"max_new_tokens": None, "repetition_penalty": 1.0}


class SamplingDefaults(Struct, frozen=True, kw_only=True):
    """As in `SamplingParams`; these are OpenAI's defaults."""

    temperature: Annotated[float, Meta(ge=0)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=1)] | None = None
    min_p: Annotated[float, Meta(ge=0, lt=1)] = 0.0


OPENAI_DEFAULTS = SamplingDefaults()


def read_sampling_defaults(path: Path) -> SamplingDefaults:
    """What the model at `path` recommends; a GGUF file recommends nothing.

    Raises:
        ModelFileError: the file is there and is wrong.
    """
    file = path / _FILE
    if not file.is_file():
        return OPENAI_DEFAULTS
    raw: dict[str, Any] = {
        name: value for name, value in read_json(file).items() if value is not None
    }
    left = [
        f"{name}={raw[name]}" for name, none in _NOT_APPLIED.items() if raw.get(name, none) != none
    ]
    if left:
        _log.warning("%s: %s: not applied", file, ", ".join(left))
    if raw.get("top_k") == 0:  # transformers' way to say "all"
        del raw["top_k"]
    try:
        return msgspec.convert(raw, SamplingDefaults)
    except msgspec.ValidationError as error:
        raise ModelFileError(f"{file}: {error}") from error
