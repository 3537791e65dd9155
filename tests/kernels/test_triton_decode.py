"""Triton's decode attention equals the reference, in fp32 under the interpreter.

`test_interpreter` runs this with TRITON_INTERPRET=1.
"""

import pytest
import torch
import triton.language as tl

from kernels import torch_ops
from kernels.triton_ops import attention_decode, attention_items
from tests.kernels.device import INTERPRETED, needs_the_interpreter
from tests.kernels.paged_cases import (
    SCALE,
    PagedCache,
    close,
    let_ranges_take_tensors,
    poisoned_memory,
)

pytestmark = needs_the_interpreter
if INTERPRETED:
    let_ranges_take_tensors(attention_decode, attention_items)
# (kv_heads, group, head_dim, block_size): each group, dimension and block size at least once
SHAPES = [
    (2, 1, 64, 16),
    (2, 2, 80, 32),
    (1, 4, 128, 16),
    (2, 5, 96, 64),
    (1, 7, 64, 32),
    (1, 8, 256, 16),
    (2, 16, 128, 64),
    (1, 17, 16, 16),
]
# Windows that begin inside the first chunk, a tile, a block, and before the beginning.
LIMITS = [(None, None), (1, None), (300, 0.7), (64, None), (4000, 2.0)]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
    attention_decode._scratch.cache_clear()


def check(
    lengths: list[int],
    shape: tuple[int, int, int, int],
    limits: tuple[int | None, float | None] = (None, None),
    processors: int = 4,
) -> None:
    kv_heads, group, head_dim, block_size = shape
    window, soft_cap = limits
    paged = PagedCache(lengths, kv_heads, head_dim, block_size)
    # Queries lie among the keys and values they were projected with.
    query = torch.randn(len(lengths), kv_heads * (group + 2), head_dim)[:, : kv_heads * group]
    full = paged.lengths > 0
    query[~full] = torch.nan
    with poisoned_memory():
        actual = attention_decode.decode_on(
            processors,
            query,
            paged.cache,
            paged.tables,
            paged.lengths,
            SCALE,
            window,
            soft_cap,
        )
    expected = torch.zeros_like(actual)
    if full.any():
        expected[full] = torch_ops.paged_attention_decode(
            query[full],
            paged.cache,
            paged.tables[full],
            paged.lengths[full],
            SCALE,
            window=window,
            soft_cap=soft_cap,
        )
    close(actual, expected)
    assert (actual[~full] == 0).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_at_the_edges_of_blocks_and_chunks(shape: tuple[int, int, int, int]) -> None:
    block_size = shape[3]
    check([1, block_size - 1, block_size, 257, 0, block_size + 1, 255, 256], shape)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3]], ids=str)
@pytest.mark.parametrize("length", [1, 255, 256, 257, 2001])
def test_one_sequence(length: int, shape: tuple[int, int, int, int]) -> None:
    check([length], shape)


@pytest.mark.parametrize(
    ("shape", "limits"), list(zip(SHAPES, LIMITS + LIMITS[2:], strict=True)), ids=str
)
def test_long_beside_short_with_windows_and_caps(
    shape: tuple[int, int, int, int], limits: tuple[int | None, float | None]
) -> None:
    check([3, 2000, 0, 300], shape, limits, processors=6)


# Programs wanted are four a processor, half of them for each of two KV heads.
@pytest.mark.parametrize(("processors", "count"), [(0, 1), (1, 2), (64, 5)])
def test_however_many_splits(processors: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch: list[tuple[torch.Tensor, ...]] = []
    make = attention_decode._scratch

    def kept(*shape: object) -> tuple[torch.Tensor, ...]:
        scratch.append(make(*shape))
        return scratch[-1]

    monkeypatch.setattr(attention_decode, "_scratch", kept)
    check([1100], (2, 2, 64, 16), processors=processors)
    assert scratch[0][2][0].tolist() == [0, count]
    check([1100], (2, 2, 64, 16), (700, 1.0), processors)


def test_more_splits_than_fit_the_second_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_decode, "_SPLITS_MAX", 2)
    check([1100, 5], (1, 2, 64, 16), processors=64)


def test_more_sequences_than_are_looked_at_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_items, "LANES", tl.constexpr(16))
    lengths = [row % 4 for row in range(20)]
    lengths[18] = 600
    check(lengths, (1, 1, 16, 16), processors=8)


def test_only_padding() -> None:
    check([0, 0, 0], (1, 2, 64, 16))


def test_scratch_is_made_once_a_shape() -> None:
    for lengths in ([600, 3], [1, 2], [1000, 700]):
        check(lengths, (1, 2, 64, 16))
    assert attention_decode._scratch.cache_info().currsize <= 2
