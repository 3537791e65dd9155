"""A Hugging Face model directory (config.json and safetensors) as a source of tensors."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from prompt.errors import ModelFileError
from prompt.model_files import read_json
from replica.models.huggingface_config import config_from_huggingface

_SINGLE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# Buffers that older versions of transformers saved; recomputed from the configuration.
_IGNORED_SUFFIX = "rotary_emb.inv_freq"


class HuggingFaceSource:
    """Tensors of one safetensors file or of the shards that the index names."""

    def __init__(self, directory: Path) -> None:
        """
        Raises:
            ModelFileError: a file is missing or cannot be read, or the model is unsupported.
        """
        self.where = directory.name
        config_file = directory / "config.json"
        self.config = config_from_huggingface(read_json(config_file), str(config_file))
        self._tensors: dict[str, Any] = {}
        for path in _weight_files(directory):
            try:
                shard = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ModelFileError(f"{path}: {error}") from error
            names: list[str] = shard.keys()  # type: ignore[no-untyped-call]
            self._tensors |= {n: shard for n in names if not n.endswith(_IGNORED_SUFFIX)}
        if self.config.tied_embeddings:
            self._tensors.pop("lm_head.weight", None)  # some files save the tied copy too

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            name: tuple(shard.get_slice(name).get_shape()) for name, shard in self._tensors.items()
        }

    def read(
        self, name: str, *, rows: range | None = None, columns: range | None = None
    ) -> torch.Tensor:
        """The tensor, or a part of it, in the dtype of the file; only that is read."""
        shard = self._tensors[name]
        if rows is None and columns is None:
            whole: torch.Tensor = shard.get_tensor(name)
            return whole
        taken = [slice(None) if rows is None else slice(rows.start, rows.stop)]
        if columns is not None:
            taken.append(slice(columns.start, columns.stop))
        part: torch.Tensor = shard.get_slice(name)[tuple(taken)]
        return part.contiguous()  # it may be a view of the mapped file


def _weight_files(directory: Path) -> list[Path]:
    if (directory / _SINGLE_FILE).exists():
        return [directory / _SINGLE_FILE]
    if not (directory / _INDEX).exists():
        raise ModelFileError(f"{directory}: neither {_SINGLE_FILE} nor {_INDEX} is there")
    weight_map = read_json(directory / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{directory / _INDEX}: no weight_map")
    return [directory / name for name in sorted(set(map(str, weight_map.values())))]
