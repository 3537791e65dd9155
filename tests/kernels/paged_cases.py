"""Paged sequences for attention kernels under the interpreter: NaN lies wherever none may look."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
import torch
import triton.language as tl

SCALE = 0.3
_POISON = 1 << 30  # as an index or a count it is far outside of everything


class PagedCache:
    """Random keys and values in scattered blocks of a cache that is NaN everywhere else."""

    def __init__(self, lengths: list[int], kv_heads: int, head_dim: int, block_size: int) -> None:
        used = [-(-length // block_size) for length in lengths]
        order = torch.randperm(sum(used) + 2).tolist()
        shape = (2, len(order), block_size, kv_heads, head_dim)
        self.cache = torch.full(shape, torch.nan)
        self.tables = torch.full((len(lengths), max(used) + 1), order.pop(), dtype=torch.int32)
        self.lengths = torch.tensor(lengths, dtype=torch.int32)
        for row, length in enumerate(lengths):
            mine = torch.tensor([order.pop() for _ in range(used[row])], dtype=torch.int32)
            self.tables[row, : used[row]] = mine
            for start, block in zip(range(0, length, block_size), mine.tolist(), strict=True):
                here = min(block_size, length - start)
                self.cache[:, block, :here] = torch.randn(2, here, kv_heads, head_dim)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """New tensors hold what shows when it is read: NaN, or an index that is nowhere."""
    empty = torch.empty

    def poisoned(*shape: object, **options: object) -> torch.Tensor:
        made = empty(*shape, **options)
        return made.fill_(torch.nan if made.is_floating_point() else _POISON)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poisoned)
        yield


def let_ranges_take_tensors(*modules: ModuleType) -> None:
    """The interpreter's scalars are arrays of one element: numpy 2.4 makes no int of these."""

    def bound(value: object) -> int:
        return int(value.handle.data.item()) if isinstance(value, tl.tensor) else int(value)

    for module in modules:
        module.range = lambda *bounds: range(*map(bound, bounds))


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert not actual.isnan().any()
    torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-5)
