"""The second half of a decoder layer: one gated MLP, or several of which each token takes a few."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from kernels.operations import Operations
from replica.models.config import ModelConfig
from replica.models.linear import Linear

TensorReader = Callable[[str], torch.Tensor]
_DENSE = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


class Mlp(Protocol):
    def __call__(self, x: torch.Tensor, ops: Operations) -> torch.Tensor:
        """[tokens, hidden] in, the same out."""


@dataclass(frozen=True, slots=True)
class DenseMlp:
    gate_up: Linear
    down: Linear

    def __call__(self, x: torch.Tensor, ops: Operations) -> torch.Tensor:
        return self.down(ops.silu_mul(self.gate_up(x)))


@dataclass(frozen=True, slots=True)
class Experts:
    """Shapes of the weights: see `kernels.torch_ops.moe`."""

    router: Linear
    gate_up: torch.Tensor
    down: torch.Tensor
    top_k: int
    renormalise: bool

    def __call__(self, x: torch.Tensor, ops: Operations) -> torch.Tensor:
        logits = self.router(x)
        return ops.moe(x, logits, self.gate_up, self.down, self.top_k, renormalise=self.renormalise)


def read_mlp(config: ModelConfig, read: TensorReader, index: int) -> Mlp:
    """Layer `index`'s."""
    prefix, experts = f"model.layers.{index}.", config.experts
    if experts is None or not experts.layers[index]:
        gate, up, down = (read(f"{prefix}{name}.weight") for name in _DENSE)
        biases = [read(f"{prefix}{name}.bias") for name in _DENSE] if config.mlp_bias else None
        if biases is None:
            return DenseMlp(Linear(torch.cat([gate, up]), None), Linear(down, None))
        return DenseMlp(
            Linear(torch.cat([gate, up]), torch.cat(biases[:2])), Linear(down, biases[2])
        )
    names = experts.names
    router = Linear(read(f"{prefix}{names.router}.weight"), None)
    gate_up, down_all = [], []
    for expert in range(experts.count):
        where = f"{prefix}{names.experts}.{expert}."
        gate_up.append(torch.cat([read(f"{where}{one}.weight") for one in (names.gate, names.up)]))
        down_all.append(read(f"{where}{names.down}.weight"))
    return Experts(
        router, torch.stack(gate_up), torch.stack(down_all), experts.per_token, experts.renormalise
    )


def mlp_shapes(config: ModelConfig, index: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names, behind the layer's, and shapes of its tensors."""
    hidden, experts = config.hidden_size, config.experts
    if experts is None or not experts.layers[index]:
        wide = config.intermediate_size
        for name in _DENSE:
            rows, columns = (hidden, wide) if name == _DENSE[2] else (wide, hidden)
            yield f"{name}.weight", (rows, columns)
            if config.mlp_bias:
                yield f"{name}.bias", (rows,)
        return
    names, wide = experts.names, experts.intermediate_size
    yield f"{names.router}.weight", (experts.count, hidden)
    for expert in range(experts.count):
        where = f"{names.experts}.{expert}."
        yield f"{where}{names.gate}.weight", (wide, hidden)
        yield f"{where}{names.up}.weight", (wide, hidden)
        yield f"{where}{names.down}.weight", (hidden, wide)
