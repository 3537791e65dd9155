"""What one rank holds of a model, and how the ranks' parts become a whole again.

    column-parallel   q, k, v, gate, up     rows of the weight: each rank has some of the outputs
    row-parallel      o, down               columns: each rank has a part of every sum
    experts                                 whole ones, each rank some: again a part of every sum
    head                                    rows: each rank has some of the vocabulary's logits
    embedding, norms, router                whole on every rank

So a layer has two sums over ranks, after o and after down, and a step one gathering, of logits.

Source: Shoeybi et al. 2019, arXiv:1909.08053, §3.
"""

from dataclasses import replace
from typing import Protocol

import torch

from replica.models.config import ModelConfig


class Shard(Protocol):
    """One of `size` ranks. All call the same operations in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Σ x over ranks, the same bits on each; x is overwritten."""
        ...

    def gather_columns(self, x: torch.Tensor, columns: int) -> torch.Tensor:
        """[rows, columns], the same bits on each rank, from each rank's `columns_of` these."""
        ...

    def minimum(self, value: int) -> int:
        """The smallest of the ranks' values. For loading: it does not go through the device.

        Raises:
            ValueError: another rank could not get this far; one line says which, and why.
        """
        ...


class Whole:
    """The only rank: holds everything, waits for nobody."""

    rank = 0
    size = 1

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def gather_columns(self, x: torch.Tensor, columns: int) -> torch.Tensor:
        assert x.shape[1] == columns
        return x

    def minimum(self, value: int) -> int:
        return value


WHOLE = Whole()


def part_of(count: int, shard: Shard) -> range:
    """Which of `count` things are this rank's: each is one rank's, and nobody has two more."""
    return range(count * shard.rank // shard.size, count * (shard.rank + 1) // shard.size)


def columns_of(count: int, rank: int, size: int) -> range:
    """Which of `count` columns a rank computes: as many on each, so the last ones may overlap.

    7 columns, 2 ranks    0 1 2 3
                                3 4 5 6
    """
    width = -(-count // size)
    start = min(rank * width, count - width)
    return range(start, start + width)


def share_of(config: ModelConfig, shard: Shard) -> ModelConfig:
    """The shape of this rank's share: a model with its heads only.

    Raises:
        ValueError: the model cannot be divided among so many.
    """
    size = shard.size
    if config.num_kv_heads % size:  # attention heads are a multiple of these
        raise ValueError(
            f"engine.tensor_parallel: {size} ranks cannot share {config.num_kv_heads} KV heads "
            f"(of {config.num_heads} attention heads) evenly"
        )
    if config.experts is not None and config.experts.count < size:
        raise ValueError(
            f"engine.tensor_parallel: {config.experts.count} experts are too few for {size} ranks"
        )
    return replace(
        config, num_heads=config.num_heads // size, num_kv_heads=config.num_kv_heads // size
    )
