"""float8_e4m3fn in kernels, as bytes and bit by bit: not every GPU has the format.

A byte is a sign, 4 bits of exponent and 3 of mantissa; all ones are NaN, infinity there is none:

    e4m3   s eeee mmm                               2^(e - 7)
    fp16   s 0eee emmm 0000 0000                    2^(e - 15): 2⁸ too small
    fp32   s 0000 eeee mmm0 0000 …                  2^(e - 127): 2¹²⁰ too small

Moved to the same places of a wider format, a number is too small by a power of two, and so is one
of exponent 0 (subnormal, in both formats): one product puts both right, without rounding. NaN then
is 480, the only number of that size: times a factor that 448 bears, it is infinite, and 0 · ∞ is
NaN. With compares and selections in place of that, widening took 1.6 times the instructions (decode
on sm_90, head_dim 128).

Source: Micikevicius et al. 2022, arXiv:2209.05433, table 1.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
import triton
import triton.language as tl

from kernels.kv_cache import FP8

# For fp16: the lift, and a factor of which 448 times stays below 2¹⁶, 480 times does not.
_LIFT_16 = tl.constexpr(2.0**8)
_BURST_16 = tl.constexpr(140.0)
# For fp32: the same below 2¹²⁸.
_LIFT_32 = tl.constexpr(2.0**120)
_BURST_32 = tl.constexpr(1.09375 * 2.0**119)
_MAX = tl.constexpr(448.0)
_NORMAL_MIN = tl.constexpr(2.0**-6)
# fp32 has steps of 2⁻⁹ there, as e4m3 has below _NORMAL_MIN.
_STEPS_FROM = tl.constexpr(2.0**14)
_STEPS_FROM_BITS = tl.constexpr(141 << 23)


def as_stored(kv_cache: torch.Tensor) -> torch.Tensor:
    """The cache as kernels take it: float8 as uint8."""
    return kv_cache.view(torch.uint8) if kv_cache.dtype == FP8 else kv_cache


@triton.jit
def widened(elements, dtype: tl.constexpr):
    """A cache's elements in `dtype`, which is theirs unless they are uint8 for float8; exact."""
    if elements.dtype == tl.uint8:
        codes = elements.to(tl.int8, bitcast=True)  # so that widening copies the sign
        if dtype == tl.float16:
            places = (codes.to(tl.int16) << 7) & -0x4080  # 0xbf80: sign and the other 7 bits
            wide = places.to(tl.float16, bitcast=True) * _LIFT_16
            wide += wide * _BURST_16 * 0.0
        else:
            places = (codes.to(tl.int32) << 20) & -0x78100000  # 0x87f00000
            wide = places.to(tl.float32, bitcast=True) * _LIFT_32
            wide += wide * _BURST_32 * 0.0
            if dtype == tl.bfloat16:  # the upper half, as the lower one is zero
                half = wide.to(tl.int32, bitcast=True) >> 16
                wide = half.to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        wide = elements
    return wide


@triton.jit
def narrowed(wide):
    """fp32 -> uint8: rounded to e4m3, halves to even, kept within ±448; NaN stays NaN."""
    bits = wide.to(tl.int32, bitcast=True)
    size = tl.minimum(tl.abs(wide), _MAX)
    size_bits = size.to(tl.int32, bitcast=True)
    # 20 bits go. Half of their span, less one if what stays is even, carries where it should.
    normal = ((size_bits + 0x7FFFF + ((size_bits >> 20) & 1)) >> 20) - (120 << 3)
    # The sum's last bits count steps, rounded; eight of them are the smallest normal number.
    steps = (size + _STEPS_FROM).to(tl.int32, bitcast=True) - _STEPS_FROM_BITS
    code = tl.where(size < _NORMAL_MIN, steps, normal)
    code = tl.where(wide == wide, code, 0x7F)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)
