"""The number formats of a KV cache: that of the model, or 8 bits with one scale for all it holds.

    format          bytes  what is kept of x
    the model's     2, 4   x
    float8_e4m3fn   1      x / scale rounded to 3 bits behind the first, within ±448

Half the bytes hold twice the tokens, and decoding, which waits for these bytes, reads half as many.
A number is off by up to 1/16 of itself, one below scale · 2⁻⁶ by up to scale · 2⁻¹⁰.

Source: Micikevicius et al. 2022, arXiv:2209.05433 (E4M3).
"""

import torch

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


def scales_of(kv_cache: torch.Tensor, key_scale: float, value_scale: float) -> tuple[float, float]:
    """Scales of a cache's keys and values: a cache in the model's format has none, so they are 1.

    They are floats whatever came: kernels are compiled again for an int.
    """
    if kv_cache.dtype != FP8:
        return 1.0, 1.0
    assert key_scale > 0
    assert value_scale > 0
    return float(key_scale), float(value_scale)
