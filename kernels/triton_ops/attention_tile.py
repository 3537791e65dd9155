"""What both attention kernels do with one tile of keys: find it, scale its scores, add it up.

A tile is TILE tokens, whole blocks or an even part of one, and begins at a multiple of TILE:

    table   [ 7 | 2 | 9 | ...        one id a block
    tile    7.0 7.1 7.2 7.3 2.0 2.1 2.2 2.3        block.slot of each token (block_size 4, TILE 8)

Softmax is computed in base 2, as GPUs do it in one instruction: eˣ = 2^(x · log₂ e).

Source: Milakov & Gimelshein 2018, arXiv:1805.02867, algorithm 3 (running softmax).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def token_offsets(
    table,
    tile,
    alive,
    kv_head,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Where the keys of tokens [tile, tile + TILE) begin in a layer's keys: [TILE] int64 elements.

    BLOCK_SIZE is a constant power of two: what looks like a division a token is folded away.
    Int64, as a cache may have more than 2³¹ elements.
    """
    lanes = tl.arange(0, TILE)
    blocks = tl.load(table + tile // BLOCK_SIZE + lanes // BLOCK_SIZE, mask=alive, other=0)
    slots = blocks.to(tl.int64) * BLOCK_SIZE + tile % BLOCK_SIZE + lanes % BLOCK_SIZE
    return (slots * KV_HEADS + kv_head) * HEAD_DIM


@triton.jit
def base2_scores(products, scale, soft_cap, HAS_CAP: tl.constexpr):
    """Scaled and capped scores, times log₂ e.

    tanh(x) = 1 - 2 / (e²ˣ + 1), which is right also where e²ˣ is 0 or infinite.
    """
    if HAS_CAP:
        power = tl.exp2(products * (scale / soft_cap * 2.0 * LOG2_E))
        return (1.0 - 2.0 / (power + 1.0)) * (soft_cap * LOG2_E)
    return products * (scale * LOG2_E)


@triton.jit
def add_tile(scores, values, highest, total, attended, MAY_SEE_NOTHING: tl.constexpr):
    """One step of the running softmax: scores [M, TILE], values [TILE, dims].

    Args:
        highest, total: [M] fp32: the greatest score so far, the sum of 2^(score - highest).
        attended: [M, dims] fp32: the sum of 2^(score - highest) · value.
        MAY_SEE_NOTHING: All of a row's scores so far may be -inf; then -inf - (-inf) is avoided.
    """
    now_highest = tl.maximum(highest, tl.max(scores, 1))
    pivot = now_highest
    if MAY_SEE_NOTHING:
        pivot = tl.where(now_highest == float("-inf"), 0.0, now_highest)
    weights = tl.exp2(scores - pivot[:, None])
    fading = tl.exp2(highest - pivot)
    total = total * fading + tl.sum(weights, 1)
    attended = tl.dot(
        weights.to(values.dtype), values, attended * fading[:, None], input_precision="ieee"
    )
    return now_highest, total, attended
