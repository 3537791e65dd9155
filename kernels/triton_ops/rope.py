"""Rotary position embedding and the write to the KV cache, in one kernel.

A program has one token and a few of its heads: queries, keys and values as they come in a row.

    heads         turned  written to
    queries       yes     where they were
    keys          yes     kv_cache[0] at the token's slot, as float8 if the cache is
    values        no      kv_cache[1] at the token's slot, likewise
"""

import torch
import triton
import triton.language as tl

from kernels.ahead import Case
from kernels.kv_cache import FP8, scales_of
from kernels.triton_ops.fp8 import as_stored, narrowed

# Pairs a program turns. No fewer than there are threads: otherwise several threads would read the
# same pair, some of them after another one has overwritten it.
_PAIRS = 1024
_WARPS = 4


def rope_and_cache_write(
    qkv: torch.Tensor,
    cosine: torch.Tensor,
    sine: torch.Tensor,
    kv_cache: torch.Tensor,
    slots: torch.Tensor,
    *,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> torch.Tensor:
    """Rotates queries and keys, writes keys and values to their slots, returns the queries.

    Each pair (x[i], x[i + head_dim / 2]) turns by position · frequency[i] (Hugging Face's
    "rotate_half" layout, not the interleaved one of the paper).

    Args:
        qkv: [tokens, heads + 2 · kv_heads, head_dim]: queries, keys, values; contiguous. The
            queries are overwritten.
        cosine, sine: [tokens, head_dim / 2] fp32, of each token's angles; contiguous.
        kv_cache: [2, blocks, block_size, kv_heads, head_dim], contiguous, in qkv's dtype or
            float8_e4m3fn.
        slots: [tokens] int64, block · block_size + offset in it; all different.
        key_scale, value_scale: What keys and values are divided by before they are rounded to
            float8, halves to even, and kept within ±448; NaN stays NaN. Of no meaning in qkv's
            dtype.

    Returns:
        [tokens, heads, head_dim] in qkv's dtype, a view of qkv; the rotation is computed in fp32.

    Source: Su et al. 2021, arXiv:2104.09864, eq. 34.
    """
    tokens, all_heads, head_dim = qkv.shape
    _, blocks, block_size, kv_heads, _ = kv_cache.shape
    heads = all_heads - 2 * kv_heads
    assert heads > 0
    assert head_dim % 2 == 0
    assert kv_cache.shape[4] == head_dim
    assert kv_cache.dtype in (qkv.dtype, FP8)
    assert cosine.shape == sine.shape == (tokens, head_dim // 2)
    assert cosine.dtype == sine.dtype == torch.float32
    assert slots.shape == (tokens,)
    assert slots.dtype == torch.int64
    assert all(one.is_contiguous() for one in (qkv, cosine, sine, kv_cache, slots))

    half_block, heads_block = _blocks(head_dim)
    key_scale, value_scale = scales_of(kv_cache, key_scale, value_scale)
    rope_and_cache_write_kernel[(tokens, triton.cdiv(all_heads, heads_block))](
        qkv,
        cosine,
        sine,
        as_stored(kv_cache),
        slots,
        blocks * block_size,
        1.0 / key_scale,
        1.0 / value_scale,
        heads,
        kv_heads,
        head_dim,
        half_block,
        heads_block,
        num_warps=_WARPS,
        num_stages=1,
    )
    return qkv[:, :heads]


def _blocks(head_dim: int) -> tuple[int, int]:
    """A program's columns of half a head, and its heads."""
    half_block = triton.next_power_of_2(head_dim // 2)
    return half_block, max(_PAIRS // half_block, 1)


# A step's slots may begin anywhere in a longer tensor: their alignment must not choose a variant.
@triton.jit(do_not_specialize=["slots", "slot_count"])
def rope_and_cache_write_kernel(
    qkv: tl.tensor,
    cosine: tl.tensor,
    sine: tl.tensor,
    kv_cache: tl.tensor,
    slots: tl.tensor,
    slot_count: tl.int64,
    key_factor: tl.float32,
    value_factor: tl.float32,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
) -> None:
    """HEADS_BLOCK heads of one token.

    Args:
        slot_count: blocks · block_size.
        kv_cache: In qkv's dtype, or uint8 for float8.
        key_factor, value_factor: Of what becomes float8.
    """
    token = tl.program_id(0).to(tl.int64)
    half: tl.constexpr = HEAD_DIM // 2
    head = tl.program_id(1) * HEADS_BLOCK + tl.arange(0, HEADS_BLOCK)[:, None]
    column = tl.arange(0, HALF_BLOCK)[None, :]
    inside = (head < HEADS + 2 * KV_HEADS) & (column < half)
    is_query = head < HEADS
    is_value = head >= HEADS + KV_HEADS

    at = qkv + token * ((HEADS + 2 * KV_HEADS) * HEAD_DIM) + head * HEAD_DIM + column
    low = tl.load(at, mask=inside)
    high = tl.load(at + half, mask=inside)
    angle_at = token * half + column
    cos = tl.load(cosine + angle_at, mask=column < half, other=1.0)
    sin = tl.load(sine + angle_at, mask=column < half, other=0.0)
    wide_low, wide_high = low.to(tl.float32), high.to(tl.float32)
    new_low = tl.where(is_value, low, (wide_low * cos - wide_high * sin).to(low.dtype))
    new_high = tl.where(is_value, high, (wide_high * cos + wide_low * sin).to(low.dtype))

    tl.store(at, new_low, mask=inside & is_query)
    tl.store(at + half, new_high, mask=inside & is_query)
    # Keys then values: heads of one row here, far apart in the cache.
    slot = tl.load(slots + token)
    kv_head = head - HEADS - tl.where(is_value, KV_HEADS, 0)
    cache_row = (tl.where(is_value, slot_count, 0) + slot) * KV_HEADS + kv_head
    cache_at = kv_cache + cache_row * HEAD_DIM + column
    if kv_cache.dtype.element_ty == tl.uint8:
        factor = tl.where(is_value, value_factor, key_factor)
        kept_low = narrowed(new_low.to(tl.float32) * factor)
        kept_high = narrowed(new_high.to(tl.float32) * factor)
    else:
        kept_low, kept_high = new_low, new_high
    tl.store(cache_at, kept_low, mask=inside & (head >= HEADS))
    tl.store(cache_at + half, kept_high, mask=inside & (head >= HEADS))


def cases() -> list[Case]:
    """Head sizes in use, with 32 query heads and 8 of keys. The block size is no part of it."""
    return [
        *(_case(kind, size) for kind in ("bf16", "fp16") for size in (64, 80, 96, 128, 256)),
        *(_case("bf16", size, fp8_cache=True) for size in (64, 128, 256)),
    ]


def _case(dtype: str, head_dim: int, fp8_cache: bool = False) -> Case:
    half_block, heads_block = _blocks(head_dim)
    return Case(
        name=f"rope_and_cache_write {dtype} {head_dim}" + (" fp8 cache" if fp8_cache else ""),
        kernel=rope_and_cache_write_kernel,
        types={
            "qkv": f"*{dtype}",
            "cosine": "*fp32",
            "sine": "*fp32",
            "kv_cache": "*u8" if fp8_cache else f"*{dtype}",
            "slots": "*i64",
            "slot_count": "i64",
            "key_factor": "fp32",
            "value_factor": "fp32",
        },
        constants={
            "HEADS": 32,
            "KV_HEADS": 8,
            "HEAD_DIM": head_dim,
            "HALF_BLOCK": half_block,
            "HEADS_BLOCK": heads_block,
        },
        aligned=("qkv", "cosine", "sine", "kv_cache"),
        num_warps=_WARPS,
        num_stages=1,
    )
