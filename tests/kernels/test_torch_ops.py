"""The reference operations against plain float64 loops, over odd shapes and poisoned caches."""

import math
from random import Random

import pytest
import torch

from kernels import torch_ops as ops
from kernels.kv_cache import FP8

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
# (heads, kv_heads, head_dim)
HEADS = pytest.mark.parametrize("heads", [(4, 4, 8), (9, 3, 64), (8, 1, 16)], ids=str)
# (window, soft_cap)
LIMITS = pytest.mark.parametrize(
    "limits", [(None, None), (1, None), (20, None), (None, 2.0), (50, 0.5)], ids=str
)
BLOCK_SIZE = 16
LENGTHS = [1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 100, 333]


@pytest.fixture(autouse=True)
def one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal within the tolerance of `actual`'s dtype."""
    tolerance = TOLERANCE[actual.dtype]
    assert not actual.isnan().any()
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


class PagedSequences:
    """Random keys and values in scattered blocks of a cache that is NaN everywhere else."""

    def __init__(
        self, lengths: list[int], kv_heads: int, head_dim: int, dtype: torch.dtype
    ) -> None:
        used = [-(-length // BLOCK_SIZE) for length in lengths]
        blocks = list(range(sum(used) + 3))
        Random(0).shuffle(blocks)
        unused = blocks.pop()
        self.lengths = lengths
        self.cache = torch.full(
            (2, len(blocks) + 1, BLOCK_SIZE, kv_heads, head_dim), torch.nan, dtype=dtype
        )
        self.tables = torch.full((len(lengths), max(used) + 1), unused, dtype=torch.int32)
        self.keys_values = []
        for row, length in enumerate(lengths):
            mine = [blocks.pop() for _ in range(used[row])]
            self.tables[row, : used[row]] = torch.tensor(mine)
            keys_values = torch.randn(2, length, kv_heads, head_dim).to(dtype)
            for position in range(length):
                block, slot = mine[position // BLOCK_SIZE], position % BLOCK_SIZE
                self.cache[:, block, slot] = keys_values[:, position]
            self.keys_values.append(keys_values.double())

    def quantise(self, key_scale: float, value_scale: float) -> None:
        """What is held becomes float8, to be multiplied by these."""
        scales = torch.tensor([key_scale, value_scale], dtype=torch.double)
        self.cache = self.cache.to(FP8)
        self.keys_values = [
            one.to(FP8).double() * scales[:, None, None, None] for one in self.keys_values
        ]

    def attend(
        self,
        row: int,
        query: torch.Tensor,
        visible: int,
        scale: float,
        window: int | None = None,
        soft_cap: float | None = None,
    ) -> torch.Tensor:
        """One query [heads, head_dim] to the first `visible` tokens of a sequence, in float64."""
        first = 0 if window is None else max(0, visible - window)
        keys, values = self.keys_values[row][:, first:visible]
        per_kv_head = query.shape[0] // keys.shape[1]
        heads = []
        for head, vector in enumerate(query.double()):
            scores = keys[:, head // per_kv_head] @ vector * scale
            if soft_cap is not None:
                scores = soft_cap * (scores / soft_cap).tanh()
            heads.append(scores.softmax(0) @ values[:, head // per_kv_head])
        return torch.stack(heads)


@DTYPES
@HEADS
@LIMITS
@pytest.mark.parametrize(
    "lengths",
    [[1], [333], [40, 40, 40], LENGTHS, [300, 2, 1, 299, 17, 1100, 16, 1101]],
    ids=["one token", "one sequence", "equal", "odd", "many groups"],
)
def test_decode_attention_equals_the_loop(
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    limits: tuple[int | None, float | None],
    lengths: list[int],
) -> None:
    window, soft_cap = limits
    query_heads, kv_heads, head_dim = heads
    paged = PagedSequences(lengths, kv_heads, head_dim, dtype)
    query = torch.randn(len(lengths), query_heads, head_dim).to(dtype)
    scale = head_dim**-0.5
    context_lengths = torch.tensor(lengths, dtype=torch.int32)
    actual = ops.paged_attention_decode(
        query,
        paged.cache,
        paged.tables,
        context_lengths,
        scale,
        window=window,
        soft_cap=soft_cap,
    )
    rows = [
        paged.attend(row, query[row], length, scale, window, soft_cap)
        for row, length in enumerate(lengths)
    ]
    close(actual, torch.stack(rows))


@DTYPES
@HEADS
@LIMITS
@pytest.mark.parametrize(
    "runs",
    [[(1, 1)], [(17, 17)], [(2, 33)], [(5, 5), (16, 48), (31, 100), (1, 64), (100, 333)]],
    ids=["one token", "no prefix", "after a prefix", "ragged"],
)
def test_prefill_attention_equals_the_loop(
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    limits: tuple[int | None, float | None],
    runs: list[tuple[int, int]],
) -> None:
    window, soft_cap = limits
    query_heads, kv_heads, head_dim = heads
    lengths = [length for _, length in runs]
    paged = PagedSequences(lengths, kv_heads, head_dim, dtype)
    news = [new for new, _ in runs]
    query = torch.randn(sum(news), query_heads, head_dim).to(dtype)
    offsets = torch.tensor([0, *torch.tensor(news).cumsum(0)], dtype=torch.int32)
    scale = head_dim**-0.5
    actual = ops.paged_attention_prefill(
        query,
        paged.cache,
        paged.tables,
        offsets,
        torch.tensor(lengths, dtype=torch.int32),
        scale,
        window=window,
        soft_cap=soft_cap,
    )
    expected = [
        paged.attend(
            row,
            query[int(offsets[row]) + index],
            length - new + index + 1,
            scale,
            window,
            soft_cap,
        )
        for row, (new, length) in enumerate(runs)
        for index in range(new)
    ]
    close(actual, torch.stack(expected))


@DTYPES
@LIMITS
@pytest.mark.parametrize("lengths", [[40, 40], LENGTHS], ids=["equal", "odd"])
def test_attention_to_a_cache_of_float8_equals_the_loop(
    dtype: torch.dtype, limits: tuple[int | None, float | None], lengths: list[int]
) -> None:
    window, soft_cap = limits
    query_heads, kv_heads, head_dim = 9, 3, 64
    scales = {"key_scale": 0.37, "value_scale": 2.5}
    paged = PagedSequences(lengths, kv_heads, head_dim, torch.float32)
    paged.quantise(**scales)
    # New tokens: the last of each sequence, and the last two where there are.
    for news in ([1] * len(lengths), [min(2, length) for length in lengths]):
        query = torch.randn(sum(news), query_heads, head_dim).to(dtype)
        offsets = torch.tensor([0, *news]).cumsum(0).to(torch.int32)
        context = torch.tensor(lengths, dtype=torch.int32)
        options = {"window": window, "soft_cap": soft_cap, **scales}
        rows = [
            paged.attend(row, query[offsets[row] + i], length - new + i + 1, 0.1, window, soft_cap)
            for row, (new, length) in enumerate(zip(news, lengths, strict=True))
            for i in range(new)
        ]
        expected = torch.stack(rows)
        arguments = (query, paged.cache, paged.tables)
        close(ops.paged_attention_prefill(*arguments, offsets, context, 0.1, **options), expected)
        if len(query) == len(lengths):
            close(ops.paged_attention_decode(*arguments, context, 0.1, **options), expected)


def test_a_cache_in_the_models_format_ignores_scales() -> None:
    paged = PagedSequences([20], 1, 16, torch.float32)
    query, length = torch.randn(1, 1, 16), torch.tensor([20], dtype=torch.int32)
    arguments = (query, paged.cache, paged.tables)
    ends = torch.tensor([0, 1], dtype=torch.int32)
    scales = {"key_scale": 3.0, "value_scale": 3.0}
    plain = ops.paged_attention_decode(*arguments, length, 0.1)
    assert torch.equal(ops.paged_attention_decode(*arguments, length, 0.1, **scales), plain)
    close(ops.paged_attention_prefill(*arguments, ends, length, 0.1, **scales), plain)
    qkv, angles, slots = torch.randn(1, 3, 16), torch.ones(1, 8), torch.tensor([5])
    ops.rope_and_cache_write(qkv.clone(), angles, angles, paged.cache, slots, **scales)
    assert torch.equal(paged.cache[1, 0, 5], qkv[0, 2:])


def test_decode_attention_does_not_depend_on_the_batch() -> None:
    paged = PagedSequences(LENGTHS, 3, 64, torch.float32)
    query = torch.randn(len(LENGTHS), 9, 64)
    lengths = torch.tensor(LENGTHS, dtype=torch.int32)
    together = ops.paged_attention_decode(query, paged.cache, paged.tables, lengths, 0.125)
    for row in range(len(LENGTHS)):
        one = slice(row, row + 1)
        alone = ops.paged_attention_decode(
            query[one], paged.cache, paged.tables[one], lengths[one], 0.125
        )
        torch.testing.assert_close(alone, together[one], rtol=1e-5, atol=1e-6)


@DTYPES
@HEADS
@pytest.mark.parametrize("tokens", [1, 37])
def test_rope_rotates_pairs_and_writes_only_its_slots(
    dtype: torch.dtype, heads: tuple[int, int, int], tokens: int
) -> None:
    query_heads, kv_heads, head_dim = heads
    half = head_dim // 2
    qkv = torch.randn(tokens, query_heads + 2 * kv_heads, head_dim).to(dtype)
    angles = torch.rand(tokens, half) * 100
    cache = torch.full((2, 7, BLOCK_SIZE, kv_heads, head_dim), torch.nan, dtype=dtype)
    slots = torch.randperm(7 * BLOCK_SIZE)[:tokens]

    expected = qkv.double()
    for token in range(tokens):
        for head in range(query_heads + kv_heads):
            for i in range(half):
                x, y = qkv[token, head, i].item(), qkv[token, head, i + half].item()
                angle = angles[token, i].item()
                expected[token, head, i] = x * math.cos(angle) - y * math.sin(angle)
                expected[token, head, i + half] = y * math.cos(angle) + x * math.sin(angle)

    query = ops.rope_and_cache_write(qkv.clone(), angles.cos(), angles.sin(), cache, slots)
    close(query, expected[:, :query_heads])
    flat = cache.view(2, -1, kv_heads, head_dim)
    close(flat[0, slots], expected[:, query_heads : query_heads + kv_heads])
    assert torch.equal(flat[1, slots], qkv[:, query_heads + kv_heads :])
    untouched = torch.ones(7 * BLOCK_SIZE, dtype=torch.bool)
    untouched[slots] = False
    assert flat[:, untouched].isnan().all()


@DTYPES
def test_keys_and_values_are_rounded_to_float8_and_kept_within_its_range(
    dtype: torch.dtype,
) -> None:
    # Halves go to even; infinity becomes the greatest number; NaN stays, in both of a pair.
    wide = [1.0, -1.0625, 1.1875, 2**-10, 3 * 2**-10, 460.0, -3000.0, torch.inf, torch.nan]
    kept = [1.0, -1.0, 1.25, 0.0, 2**-8, 448.0, -448.0, 448.0, torch.nan]
    pairs = [*[0.0] * 8, torch.nan]
    head, expected = torch.tensor(wide + pairs), torch.tensor(kept + pairs)
    qkv = torch.stack([head, head * 0.5, head * 4]).to(dtype)[None]
    qkv[0, 1, 7] = 1e6  # turned, infinity would be NaN
    cache = torch.full((2, 3, BLOCK_SIZE, 1, 18), torch.nan).to(FP8)
    cosine, sine, slots = torch.ones(1, 9), torch.zeros(1, 9), torch.tensor([BLOCK_SIZE + 3])
    ops.rope_and_cache_write(qkv, cosine, sine, cache, slots, key_scale=0.5, value_scale=4.0)
    written = cache.float()
    for one in written[:, 1, 3, 0]:
        torch.testing.assert_close(one, expected, rtol=0, atol=0, equal_nan=True)
    written[:, 1, 3] = torch.nan
    assert written.isnan().all()


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1), (1, 576), (33, 577)], ids=str)
def test_rms_norm_equals_its_formula(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x, residual = (torch.randn(shape).to(dtype) * 3 for _ in range(2))
    weight = torch.randn(shape[1]).to(dtype)

    def formula(value: torch.Tensor) -> torch.Tensor:
        wide = value.double()
        return wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()

    close(ops.rms_norm(x, weight, 1e-5), formula(x))
    total = x + residual
    normed, summed = ops.add_rms_norm(x, residual.clone(), weight, 1e-5)
    assert torch.equal(summed, total)
    close(normed, formula(total))


@DTYPES
@pytest.mark.parametrize("shape", [(1, 2), (1, 3072), (33, 30)], ids=str)
def test_silu_mul_equals_its_formula(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    gate_up = (torch.randn(shape) * 4).to(dtype)
    gate, up = gate_up.double().chunk(2, dim=1)
    close(ops.silu_mul(gate_up), gate / (1 + (-gate).exp()) * up)
