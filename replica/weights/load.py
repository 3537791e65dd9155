"""From a model's files to a network ready to run: checks every tensor, then reads them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from kernels.operations import Operations
from prompt.errors import ModelFileError
from replica.models.config import ModelConfig
from replica.models.errors import WrongTensor
from replica.models.registry import Model, architecture
from replica.parallel.shard import WHOLE, Shard
from replica.weights.gguf_source import GgufSource
from replica.weights.huggingface_source import HuggingFaceSource

# Told the fraction loaded so far, in [0, 1], and what is being done.
Progress = Callable[[float, str], None]


class TensorSource(Protocol):
    """Where tensors come from. `where` is for messages."""

    where: str
    config: ModelConfig

    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def read(
        self, name: str, *, rows: range | None = None, columns: range | None = None
    ) -> torch.Tensor:
        """The tensor, or those rows and columns of it; no more of it is kept."""
        ...


def open_source(path: Path) -> TensorSource:
    """The tensors at `path`: a Hugging Face directory or a GGUF file.

    Raises:
        ModelFileError: there is neither.
    """
    if path.is_dir():
        return HuggingFaceSource(path)
    if path.suffix == ".gguf":
        return GgufSource(path)
    raise ModelFileError(f"{path}: neither a Hugging Face directory nor a .gguf file")


def load_model(
    source: TensorSource,
    *,
    dtype: torch.dtype,
    device: torch.device,
    ops: Operations,
    max_model_len: int | None = None,
    shard: Shard = WHOLE,
    progress: Progress | None = None,
) -> Model:
    """The network of `source`, its weights in `dtype` on `device`; on every rank, or on none.

    Args:
        ops: What it computes with.
        max_model_len: Shortens the model's context; None keeps it.
        shard: Which part of it.

    Raises:
        ValueError: the model cannot be divided among the ranks, or another rank cannot load.
        UnsupportedModel: no such architecture.
        WrongTensor: a tensor is missing, unknown or of the wrong shape, or a scale is not positive;
            it names the first.
        ModelFileError: a tensor cannot be decoded.
    """
    config = source.config
    if max_model_len is not None:
        config = replace(config, max_model_len=min(max_model_len, config.max_model_len))
    built = architecture(config.architecture)
    expected = built.tensor_shapes(config)
    found = source.shapes()
    scales = {
        name: _read_scale(source, name) for name in sorted(built.scale_names(config) & found.keys())
    }
    _check_shapes(source.where, expected, {n: s for n, s in found.items() if n not in scales})
    unread = set(expected)

    def read(name: str, *, rows: range | None = None, columns: range | None = None) -> torch.Tensor:
        if progress is not None:
            progress(1 - len(unread) / len(expected), f"reading {name}")
        unread.remove(name)
        tensor = source.read(name, rows=rows, columns=columns)
        return tensor.to(device=device, dtype=dtype)

    with torch.inference_mode():
        model = built.build(config, read, device, ops, scales, shard)
    assert shard.size > 1 or not unread, f"nobody reads {sorted(unread)}"
    shard.minimum(0)  # nobody computes before all can
    if progress is not None:
        progress(1.0, "weights are loaded")
    return model


def _read_scale(source: TensorSource, name: str) -> float:
    tensor = source.read(name)
    if tensor.numel() != 1:
        raise WrongTensor(f"{source.where}: tensor {name} {list(tensor.shape)} is not one number")
    scale = float(tensor.item())
    if not 0 < scale < math.inf:
        raise WrongTensor(f"{source.where}: {name} is {scale}, not more than 0 and finite")
    return scale


def _check_shapes(
    where: str,
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
) -> None:
    for name, shape in expected.items():
        if name not in found:
            raise WrongTensor(f"{where}: tensor {name} {list(shape)} is missing")
        if found[name] != shape:
            raise WrongTensor(
                f"{where}: tensor {name} has shape {list(found[name])}, "
                f"where {list(shape)} is expected"
            )
    for name, shape in found.items():
        if name not in expected:
            raise WrongTensor(f"{where}: tensor {name} {list(shape)} is not part of this model")
