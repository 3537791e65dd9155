"""The second half of a decoder layer: one gated MLP, or several of which each token takes a few."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from kernels.operations import Operations
from replica.models.config import ExpertsConfig, ModelConfig
from replica.models.linear import Linear
from replica.parallel.shard import Shard, part_of

_DENSE = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


class TensorReader(Protocol):
    def __call__(
        self, name: str, *, rows: range | None = None, columns: range | None = None
    ) -> torch.Tensor:
        """A tensor by name, or those rows and columns of it."""


class Mlp(Protocol):
    def __call__(self, x: torch.Tensor, ops: Operations) -> torch.Tensor:
        """[tokens, hidden] in, the same out: this rank's part of the sum."""


@dataclass(frozen=True, slots=True)
class DenseMlp:
    gate_up: Linear
    down: Linear

    def __call__(self, x: torch.Tensor, ops: Operations) -> torch.Tensor:
        return self.down(ops.silu_mul(self.gate_up(x)))


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts this rank holds. Shapes of the weights: see `kernels.torch_ops.moe`."""

    router: Linear
    gate_up: torch.Tensor
    down: torch.Tensor
    top_k: int
    renormalise: bool
    first_expert: int

    def __call__(self, x: torch.Tensor, ops: Operations) -> torch.Tensor:
        return ops.moe(
            x,
            self.router(x),
            self.gate_up,
            self.down,
            self.top_k,
            renormalise=self.renormalise,
            first_expert=self.first_expert,
        )


def read_mlp(config: ModelConfig, read: TensorReader, index: int, shard: Shard) -> Mlp:
    """This rank's part of layer `index`'s.

    Args:
        config: The shape of the whole.
    """
    prefix = f"model.layers.{index}."
    if config.experts is not None and config.experts.layers[index]:
        return _read_experts(config.experts, read, prefix, part_of(config.experts.count, shard))
    gate, up, down = (f"{prefix}{name}" for name in _DENSE)
    inner = part_of(config.intermediate_size, shard)
    gate_up = torch.cat([read(f"{name}.weight", rows=inner) for name in (gate, up)])
    down_weight = read(f"{down}.weight", columns=inner)
    if not config.mlp_bias:
        return DenseMlp(Linear(gate_up), Linear(down_weight))
    biases = torch.cat([read(f"{name}.bias", rows=inner) for name in (gate, up)])
    # Part of a sum: added once.
    down_bias = read(f"{down}.bias") if shard.rank == 0 else None
    return DenseMlp(Linear(gate_up, biases), Linear(down_weight, down_bias))


def _read_experts(experts: ExpertsConfig, read: TensorReader, prefix: str, held: range) -> Experts:
    names = experts.names
    router = Linear(read(f"{prefix}{names.router}.weight"))
    gate_up, down = [], []
    for expert in held:
        where = f"{prefix}{names.experts}.{expert}."
        gate_up.append(torch.cat([read(f"{where}{one}.weight") for one in (names.gate, names.up)]))
        down.append(read(f"{where}{names.down}.weight"))
    return Experts(
        router=router,
        gate_up=torch.stack(gate_up),
        down=torch.stack(down),
        top_k=experts.per_token,
        renormalise=experts.renormalise,
        first_expert=held.start,
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
