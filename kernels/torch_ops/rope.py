"""Rotary position embedding of queries and keys, and the write of keys and values to the cache."""

import torch

from kernels.kv_cache import FP8, FP8_MAX, scales_of


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
        qkv: [tokens, heads + 2 · kv_heads, head_dim]: queries, keys, values; overwritten.
        cosine, sine: [tokens, head_dim / 2] fp32, of each token's angles.
        kv_cache: [2, blocks, block_size, kv_heads, head_dim], contiguous, in qkv's dtype or
            float8_e4m3fn.
        slots: [tokens] int64, block · block_size + offset in it; all different.
        key_scale, value_scale: What keys and values are divided by before they are rounded to
            float8, halves to even, and kept within ±448; NaN stays NaN. Of no meaning in qkv's
            dtype.

    Returns:
        [tokens, heads, head_dim] in qkv's dtype; the rotation is computed in fp32.

    Source: Su et al. 2021, arXiv:2104.09864, eq. 34.
    """
    tokens, all_heads, head_dim = qkv.shape
    _, blocks, block_size, kv_heads, _ = kv_cache.shape
    heads = all_heads - 2 * kv_heads
    assert heads > 0
    assert kv_cache.shape[4] == head_dim
    assert kv_cache.dtype in (qkv.dtype, FP8)
    assert cosine.shape == sine.shape == (tokens, head_dim // 2)

    half = head_dim // 2
    turned = qkv[:, : heads + kv_heads]
    low, high = turned[..., :half].float(), turned[..., half:].float()
    cosine, sine = cosine.unsqueeze(1), sine.unsqueeze(1)
    new_low = (low * cosine).addcmul_(high, sine, value=-1.0)
    new_high = (high * cosine).addcmul_(low, sine)
    turned[..., :half] = new_low
    turned[..., half:] = new_high

    keys_values = qkv[:, heads:].view(tokens, 2, kv_heads, head_dim).transpose(0, 1)
    if kv_cache.dtype == FP8:
        scales = scales_of(kv_cache, key_scale, value_scale)
        # Bytes, as not every device copies float8 by index.
        keys_values = torch.stack(list(map(_quantised, keys_values, scales))).view(torch.uint8)
        kv_cache = kv_cache.view(torch.uint8)
    slots_view = kv_cache.view(2, blocks * block_size, kv_heads, head_dim)
    slots_view.index_copy_(1, slots, keys_values)
    return qkv[:, :heads]


def _quantised(wide: torch.Tensor, scale: float) -> torch.Tensor:
    """A product with 1 / scale in fp32, as a division costs a GPU more and need not be exact."""
    return (wide.float() * (1.0 / scale)).clamp_(-FP8_MAX, FP8_MAX).to(FP8)
