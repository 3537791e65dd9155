"""Which network serves which architecture name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from kernels.operations import Operations
from replica.models import decoder
from replica.models.config import ModelConfig
from replica.models.errors import UnsupportedModel
from replica.models.mlp import TensorReader
from replica.parallel.shard import Shard


class Model(Protocol):
    """What the runner needs of a network. `config` is the shape of this rank's share."""

    config: ModelConfig

    def forward(self, step: decoder.StepTensors, kv_caches: list[torch.Tensor]) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How to build one: the tensors it needs, and the constructor that reads a rank's part of them.

    Attributes:
        scale_names: Tensors of one number that a model's files may have; those that are there go to
            `build` by name.
    """

    tensor_shapes: Callable[[ModelConfig], Mapping[str, tuple[int, ...]]]
    scale_names: Callable[[ModelConfig], frozenset[str]]
    build: Callable[
        [ModelConfig, TensorReader, torch.device, Operations, Mapping[str, float], Shard], Model
    ]


_DECODER = Architecture(
    tensor_shapes=decoder.tensor_shapes,
    scale_names=decoder.scale_names,
    build=decoder.Decoder,
)
_ARCHITECTURES = {
    "LlamaForCausalLM": _DECODER,
    "MistralForCausalLM": _DECODER,
    "MixtralForCausalLM": _DECODER,
    "Qwen2ForCausalLM": _DECODER,
    "Qwen3ForCausalLM": _DECODER,
    "Qwen3MoeForCausalLM": _DECODER,
}


def architecture(name: str) -> Architecture:
    """
    Raises:
        UnsupportedModel: we have no network of this name.
    """
    found = _ARCHITECTURES.get(name)
    if found is None:
        supported = ", ".join(sorted(_ARCHITECTURES))
        raise UnsupportedModel(f"architecture {name} is not supported (supported: {supported})")
    return found
