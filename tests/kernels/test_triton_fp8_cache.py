"""A KV cache of float8 on Triton's kernels: its bytes are the reference's, and so is attention.

`test_interpreter` runs this with TRITON_INTERPRET=1.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from kernels import torch_ops, triton_ops
from kernels.kv_cache import FP8, FP8_MAX
from kernels.triton_ops import (
    attention_decode,
    attention_items,
    attention_prefill,
    attention_prefill_splits,
)
from kernels.triton_ops.fp8 import narrowed, widened
from tests.kernels.device import INTERPRETED, needs_the_interpreter
from tests.kernels.guards import Guards
from tests.kernels.paged_cases import (
    SCALE,
    PagedCache,
    close,
    let_ranges_take_tensors,
    poisoned_memory,
)

pytestmark = needs_the_interpreter
if INTERPRETED:
    let_ranges_take_tensors(
        attention_decode, attention_items, attention_prefill, attention_prefill_splits
    )
KEY_SCALE, VALUE_SCALE = 0.37, 2.3
CODES = torch.arange(256, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@triton.jit
def widen_kernel(out: tl.tensor, codes: tl.tensor, COUNT: tl.constexpr) -> None:
    at = tl.arange(0, COUNT)
    tl.store(out + at, widened(tl.load(codes + at), out.dtype.element_ty))


@triton.jit
def narrow_kernel(codes: tl.tensor, wide: tl.tensor, COUNT: tl.constexpr) -> None:
    at = tl.program_id(0) * COUNT + tl.arange(0, COUNT)
    tl.store(codes + at, narrowed(tl.load(wide + at)))


# NaN comes of an infinity on the way.
@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_every_code_is_widened_exactly(dtype: torch.dtype) -> None:
    out = torch.empty(256, dtype=dtype)
    widen_kernel[(1,)](out, CODES, 256)
    expected = CODES.view(FP8).to(dtype)
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    zeros = expected == 0
    assert torch.equal(out[zeros].signbit(), expected[zeros].signbit())


def all_of(dtype: torch.dtype) -> torch.Tensor:
    """Every number of 16 bits, in fp32."""
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).float()


def halfway() -> torch.Tensor:
    """fp32 numbers about those in the middle of two neighbours in float8, of both signs."""
    sizes = CODES[:127].view(FP8).float()
    middles = (sizes[1:] + sizes[:-1]) / 2
    up, down = (middles.nextafter(torch.tensor(to)) for to in (1e9, 0.0))
    found = torch.cat([middles, up, down, sizes, torch.tensor([464.0, 465.0, 3e38])])
    return torch.nn.functional.pad(torch.cat([found, -found]), (0, 1024 - 2 * len(found)))


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # signalling NaNs
@pytest.mark.parametrize(
    "wide",
    [all_of(torch.float16), all_of(torch.bfloat16), halfway()],
    ids=["fp16", "bf16", "halfway"],
)
def test_all_numbers_are_rounded_as_torch_does(wide: torch.Tensor) -> None:
    codes = torch.empty(len(wide), dtype=torch.uint8)
    narrow_kernel[(len(wide) // 1024,)](codes, wide, 1024)
    expected = wide.clamp(-FP8_MAX, FP8_MAX).to(FP8).view(torch.uint8)
    number = ~wide.isnan()
    assert torch.equal(codes[number], expected[number])
    assert ((codes[~number] & 127) == 127).all()


# Values are rotated, too, before what is no value is taken instead.
@pytest.mark.filterwarnings("ignore:invalid value encountered")
# (heads, kv_heads, head_dim)
@pytest.mark.parametrize("heads", [(9, 3, 64), (2, 2, 80), (1, 1, 6)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("scales", [{}, {"key_scale": KEY_SCALE, "value_scale": VALUE_SCALE}])
def test_both_backends_write_the_same_bytes(
    guards: Guards, heads: tuple[int, int, int], dtype: torch.dtype, scales: dict[str, float]
) -> None:
    query_heads, kv_heads, head_dim = heads
    tokens, slot_count = 19, 5 * 16
    qkv = (torch.randn(tokens, query_heads + 2 * kv_heads, head_dim) * 100).to(dtype)
    qkv[3, -1, :2] = torch.tensor([torch.nan, torch.inf])
    qkv[4, query_heads] = torch.nan
    # Quarter turns: any other may be rounded in one step or in two.
    quarters = torch.randint(4, (tokens, head_dim // 2))
    cosine, sine = (torch.tensor(one)[quarters] for one in ([1.0, 0, -1, 0], [0, 1.0, 0, -1]))
    slots = torch.randperm(slot_count)[:tokens]
    cache = guards.empty(2, 5, 16, kv_heads, head_dim, dtype=FP8)
    expected = cache.clone()
    torch_ops.rope_and_cache_write(qkv.clone(), cosine, sine, expected, slots, **scales)
    triton_ops.rope_and_cache_write(guards.copy(qkv), cosine, sine, cache, slots, **scales)
    assert torch.equal(cache.view(torch.uint8), expected.view(torch.uint8))
    untouched = torch.ones(slot_count, dtype=torch.bool)
    untouched[slots] = False
    assert cache.view(2, slot_count, kv_heads, head_dim)[:, untouched].isnan().all()
    assert cache.view(2, slot_count, kv_heads, head_dim)[1, slots[3], -1, 0].isnan()


def paged(lengths: list[int], shape: tuple[int, int, int, int]) -> tuple[PagedCache, torch.Tensor]:
    """Sequences whose keys and values are quantised, NaN about them still NaN."""
    kv_heads, _, head_dim, block_size = shape
    made = PagedCache(lengths, kv_heads, head_dim, block_size)
    return made, made.cache.to(FP8)


# (kv_heads, group, head_dim, block_size), (window, soft_cap)
CASES = [
    ((2, 4, 64, 16), (None, None)),
    ((1, 7, 80, 32), (50, 0.7)),
    ((1, 2, 128, 64), (64, None)),
    ((1, 1, 256, 16), (None, 2.0)),
]


@pytest.mark.parametrize(("shape", "limits"), CASES, ids=str)
def test_decode_attention(
    shape: tuple[int, int, int, int], limits: tuple[int | None, float | None]
) -> None:
    attention_decode._scratch.cache_clear()
    lengths = [1, shape[3] + 1, 600]
    sequences, cache = paged(lengths, shape)
    query = torch.randn(len(lengths), shape[0] * shape[1], shape[2])
    arguments = (query, cache, sequences.tables, sequences.lengths, SCALE)
    compare("paged_attention_decode", arguments, limits)


@pytest.mark.parametrize(
    ("shape", "limits", "kind"),
    [
        (*case, kind)
        for case, kind in zip(CASES, ["sm_90", "gfx942", "sm_80", "sm_80"], strict=True)
    ],
    ids=str,
)
def test_prefill_attention(
    shape: tuple[int, int, int, int],
    limits: tuple[int | None, float | None],
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention_prefill, "kind", lambda _: kind)
    for runs in ([(1, 1), (17, 17), (33, 100)], [(1, 257), (1, 64)]):
        sequences, cache = paged([length for _, length in runs], shape)
        offsets = torch.tensor([0, *(new for new, _ in runs)]).cumsum(0).to(torch.int32)
        query = torch.randn(int(offsets[-1]), shape[0] * shape[1], shape[2])
        arguments = (query, cache, sequences.tables, offsets, sequences.lengths, SCALE)
        compare("paged_attention_prefill", arguments, limits)


def compare(name: str, arguments: tuple[Any, ...], limits: tuple[int | None, float | None]) -> None:
    """The backends' results, which keys' and values' scales do change."""
    window, soft_cap = limits
    options: dict[str, Any] = {"window": window, "soft_cap": soft_cap}
    scales = {"key_scale": KEY_SCALE, "value_scale": VALUE_SCALE}
    reference: Callable[..., torch.Tensor] = getattr(torch_ops, name)
    with poisoned_memory():
        actual = getattr(triton_ops, name)(*arguments, **options, **scales)
    close(actual, reference(*arguments, **options, **scales))
    assert not torch.allclose(actual, reference(*arguments, **options), rtol=0.1)
