"""Triton's prefill attention equals the reference, in fp32 under the interpreter.

`test_interpreter` runs this with TRITON_INTERPRET=1.
"""

import pytest
import torch
import triton.language as tl

from kernels import torch_ops
from kernels.triton_ops import attention_items, attention_prefill, attention_prefill_splits
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
    let_ranges_take_tensors(attention_prefill, attention_prefill_splits, attention_items)
# (kv_heads, group, head_dim, block_size): each group, dimension and block size at least once
SHAPES = [
    (2, 1, 64, 16),
    (2, 2, 80, 32),
    (1, 4, 128, 64),
    (2, 5, 96, 64),
    (1, 7, 64, 32),
    (1, 8, 256, 16),
    (2, 16, 64, 16),
    (1, 17, 16, 16),
]
KINDS = ["sm_80", "sm_90", "gfx942"]  # each has tiles of its own
# (new tokens, tokens in all)
FEW = [(1, 1), (1, 2), (1, 64), (2, 257), (1, 256)]
RAGGED = [(1, 1), (17, 17), (33, 100), (1, 255), (64, 64), (40, 300)]
# Windows of one token, within a tile, over several, past the beginning.
LIMITS = [(1, None), (20, 0.7), (100, None), (4000, 2.0)]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def check(
    runs: list[tuple[int, int]],
    shape: tuple[int, int, int, int],
    limits: tuple[int | None, float | None] = (None, None),
) -> None:
    kv_heads, group, head_dim, block_size = shape
    window, soft_cap = limits
    paged = PagedCache([length for _, length in runs], kv_heads, head_dim, block_size)
    offsets = torch.tensor([0, *(new for new, _ in runs)]).cumsum(0).to(torch.int32)
    # Queries lie among the keys and values they were projected with.
    projected = torch.randn(int(offsets[-1]), kv_heads * (group + 2), head_dim)
    query = projected[:, : kv_heads * group]
    projected[:, kv_heads * group :] = torch.nan
    with poisoned_memory():
        actual = attention_prefill.paged_attention_prefill(
            query,
            paged.cache,
            paged.tables,
            offsets,
            paged.lengths,
            SCALE,
            window=window,
            soft_cap=soft_cap,
        )
    some = [row for row, (new, _) in enumerate(runs) if new]
    expected = torch_ops.paged_attention_prefill(
        query,
        paged.cache,
        paged.tables[some],
        offsets[[0, *(row + 1 for row in some)]],
        paged.lengths[some],
        SCALE,
        window=window,
        soft_cap=soft_cap,
    )
    close(actual, expected)


@pytest.mark.parametrize(
    ("shape", "kind"), [(shape, KINDS[i % 3]) for i, shape in enumerate(SHAPES)], ids=str
)
def test_runs_of_many_lengths(
    shape: tuple[int, int, int, int], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_prefill, "kind", lambda _: kind)
    check(RAGGED, shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_few_new_tokens_each(shape: tuple[int, int, int, int]) -> None:
    check(FEW, shape)


# The quickest shape with each limit, and slower ones with one each.
@pytest.mark.parametrize(
    ("shape", "limits"),
    [*((SHAPES[4], limits) for limits in LIMITS), *zip(SHAPES[3::2], LIMITS, strict=False)],
    ids=str,
)
def test_windows_and_caps(
    shape: tuple[int, int, int, int], limits: tuple[int | None, float | None]
) -> None:
    check(RAGGED, shape, limits)
    check(FEW, shape, limits)


@pytest.mark.parametrize("length", [15, 16, 17, 255, 256, 257])
@pytest.mark.parametrize("prefix", [0, 1, 16])
def test_one_sequence_after_a_prefix(prefix: int, length: int) -> None:
    if prefix < length:
        check([(length - prefix, length)], (1, 2, 64, 16))


@pytest.mark.parametrize("limits", [(None, None), (700, 1.0)], ids=str)
def test_the_end_of_a_long_sequence(limits: tuple[int | None, float | None]) -> None:
    check([(50, 2000)], (1, 4, 64, 32), limits)
    check([(1, 2001)], (1, 4, 64, 32), limits)


@pytest.mark.parametrize("limits", [(None, None), (900, 1.0), (60, None)], ids=str)
@pytest.mark.parametrize(
    "runs",
    # Splits of many kinds beside each other: none, one, all; of tiles of many rows and of few.
    [[(50, 2000)], [(40, 300), (33, 1500), (1, 1), (70, 70)], [(2, 1400), (1, 300), (3, 40)]],
    ids=["one", "many rows", "few rows"],
)
def test_keys_are_split_where_tiles_do_not_fill_the_gpu(
    runs: list[tuple[int, int]],
    limits: tuple[int | None, float | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    combined = []
    combine = attention_prefill.combine
    monkeypatch.setattr(attention_prefill_splits, "processors", lambda _: 64)
    monkeypatch.setattr(attention_prefill, "combine", lambda *told: combined.append(combine(*told)))
    check(runs, (1, 4, 64, 32), limits)
    assert combined


def test_sequences_without_new_tokens() -> None:
    check([(0, 5), (20, 30), (0, 0), (0, 64), (3, 3), (0, 1)], (1, 2, 64, 16))


def test_more_sequences_than_are_looked_at_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_items, "LANES", tl.constexpr(16))
    check([(1 + row % 2, 2 + row % 5) for row in range(20)], (1, 1, 16, 16))
