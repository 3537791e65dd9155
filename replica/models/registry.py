"""Which network serves which architecture name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from kernels.operations import Operations
from replica.models import llama
from replica.models.config import ModelConfig
from replica.models.errors import UnsupportedModel


class Model(Protocol):
    """What the runner needs of a network."""

    config: ModelConfig

    def forward(self, step: llama.StepTensors, kv_caches: list[torch.Tensor]) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How to build one: the tensors it needs, and the constructor that reads them."""

    tensor_shapes: Callable[[ModelConfig], Mapping[str, tuple[int, ...]]]
    build: Callable[[ModelConfig, llama.TensorReader, torch.device, Operations], Model]


_ARCHITECTURES = {
    "LlamaForCausalLM": Architecture(tensor_shapes=llama.tensor_shapes, build=llama.Llama),
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
