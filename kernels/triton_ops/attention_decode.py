"""Attention of one new token a sequence over a paged KV cache, long sequences split, in Triton.

Sequences are cut into chunks of one length; an item is one chunk. With chunks of 512 tokens:

    tokens      700           40      1300
    items       [0 512|1 188] [2 40]  [3 512|4 512|5 276]

1.  Program (KV head, item) finds its sequence and chunk: it adds up the lengths, 256 at a time, so
    that no host and no kernel before it has to.
2.  It walks its tiles. The query heads of the KV head are the rows of one small matrix:

        keys     | tile | tile | tile |
        query  M | ···· | ···· | ···· |  → scores → running softmax → values

3.  The only item of its sequence writes the result. Others write theirs, normalised, with the
    logarithm of their sum, to scratch.
4.  Program (sequence, head) of the second kernel loads these in one vector and weighs them:
    out = Σᵢ 2^(log_sumᵢ - max) · partialᵢ / Σᵢ 2^(log_sumᵢ - max).

The chunk's length follows from all lengths, so that one long sequence among short ones is spread
over the whole GPU. Results may so differ in the last bits with what else is in the batch.

Sources: Dao et al. 2023, "Flash-Decoding"; Kwon et al. 2023, arXiv:2309.06180.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from functools import cache

import torch
import triton
import triton.language as tl

from kernels.kv_cache import FP8, scales_of
from kernels.triton_ops.attention_items import CHUNK_TOKENS_MIN, find_item
from kernels.triton_ops.attention_tile import add_tile, base2_scores, token_offsets
from kernels.triton_ops.fp8 import as_stored, widened
from kernels.triton_ops.launch_rules import DECODE, kind, processors

# The second kernel holds all splits of a head at once: 128 · 128 fp32 are 64 registers a thread.
_SPLITS_MAX = 128
# Programs wanted for each streaming multiprocessor: as many as fit at a time, see `launch_rules`.
_PROGRAMS_PER_PROCESSOR = 4


def paged_attention_decode(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    context_lengths: torch.Tensor,
    scale: float,
    *,
    window: int | None = None,
    soft_cap: float | None = None,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> torch.Tensor:
    """softmax(q · Kᵀ · scale) · V for the last token of each sequence.

    Args:
        query: [sequences, heads, head_dim]; rows may be apart, a row is contiguous.
        kv_cache: [2, blocks, block_size, kv_heads, head_dim], contiguous, in query's dtype (bf16,
            fp16 or fp32) or float8_e4m3fn; holds the last token already. block_size: a power of
            two, 16 to 64.
        block_tables: [sequences, max_blocks] int32.
        context_lengths: [sequences] int32: tokens in the cache, the last included. Rows of 0, as
            pad the batch of a CUDA graph, become zeros.
        scale: Usually 1 / sqrt(head_dim).
        window: Only so many last tokens are seen, the token itself included; None: all.
        soft_cap: Scores s, scaled, become soft_cap · tanh(s / soft_cap); None: they stay.
        key_scale, value_scale: What a key and a value of float8 are multiplied by; of no meaning
            in query's dtype.

    Returns:
        [sequences, heads, head_dim] in query's dtype.

    Scratch is kept and used again: calls on the same device must be on one stream.
    """
    return decode_on(
        processors(query.device),
        query,
        kv_cache,
        block_tables,
        context_lengths,
        scale,
        window,
        soft_cap,
        key_scale,
        value_scale,
    )


def decode_on(
    processors: int,
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    context_lengths: torch.Tensor,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> torch.Tensor:
    """`paged_attention_decode` in splits that suit so many streaming multiprocessors."""
    sequences, heads, head_dim = query.shape
    _, blocks, block_size, kv_heads, _ = kv_cache.shape
    assert kv_cache.is_contiguous()
    assert kv_cache.shape[4] == head_dim
    assert kv_cache.dtype in (query.dtype, FP8)
    assert query.stride()[1:] == (head_dim, 1)
    assert block_tables.shape[0] == sequences == context_lengths.shape[0]
    assert block_tables.dtype == context_lengths.dtype == torch.int32
    assert block_tables.stride(1) == context_lengths.stride(0) == 1
    assert heads % kv_heads == 0
    assert window is None or window > 0
    key_scale, value_scale = scales_of(kv_cache, key_scale, value_scale)

    wanted = max(1, processors * _PROGRAMS_PER_PROCESSOR // kv_heads)
    # As a constant of the kernels it depends on device and model alone, never on the batch.
    splits_max = min(_SPLITS_MAX, triton.next_power_of_2(wanted))
    splits_possible = -(-block_tables.shape[1] * block_size // CHUNK_TOKENS_MIN.value)
    items = min(wanted + sequences, sequences * splits_possible)
    partials, log_sums, splits = _scratch(
        query.device, triton.next_power_of_2(items), heads, head_dim
    )
    out = torch.empty((sequences, heads, head_dim), dtype=query.dtype, device=query.device)
    launch = DECODE.launch(
        kind(query.device),
        query.element_size(),
        kv_cache.element_size(),
        head_dim,
        block_size,
        heads // kv_heads,
    )
    _decode_kernel[(kv_heads, items)](
        out,
        partials,
        log_sums,
        splits,
        query,
        as_stored(kv_cache),
        block_tables,
        context_lengths,
        sequences,
        wanted,
        blocks,
        query.stride(0),
        block_tables.stride(0),
        scale * key_scale,
        window or 0,
        float(soft_cap or 0),  # an int would be another type, and compiled again
        value_scale,
        KV_HEADS=kv_heads,
        GROUP=heads // kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        SPLITS_MAX=splits_max,
        HAS_WINDOW=window is not None,
        HAS_CAP=soft_cap is not None,
        **launch,
    )
    if splits_possible > 1:
        _combine_kernel[(sequences, heads)](
            out,
            partials,
            log_sums,
            splits,
            HEADS=heads,
            HEAD_DIM=head_dim,
            DIMS=launch["DIMS"],
            SPLITS_MAX=splits_max,
            num_warps=_combine_warps(splits_max, launch["DIMS"]),
            num_stages=1,
        )
    return out


@cache
def _scratch(
    device: torch.device, items: int, heads: int, head_dim: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Partial results and logarithms of their sums by item; first item and count by sequence.

    Never freed, as a CUDA graph may hold its address; `items` is a power of two, so the sum of
    all is at most twice the greatest.
    """
    return (
        torch.empty((items, heads, head_dim), dtype=torch.float32, device=device),
        torch.empty((items, heads), dtype=torch.float32, device=device),
        torch.empty((items, 2), dtype=torch.int32, device=device),
    )


def _combine_warps(splits_max: int, dims: int) -> int:
    """So many that a thread holds at most 64 numbers: more would spill."""
    return max(1, min(16, splits_max * dims // (32 * 64)))


@triton.jit(
    do_not_specialize=["sequences", "wanted", "blocks", "table_stride", "window"],
    do_not_specialize_on_alignment=["block_tables", "lengths"],
)
def _decode_kernel(
    out,
    partials,
    log_sums,
    splits,
    query,
    kv_cache,
    block_tables,
    lengths,
    sequences,
    wanted,
    blocks,
    query_stride,
    table_stride,
    scale,
    window,
    soft_cap,
    value_scale,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    SPLITS_MAX: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
):
    kv_head = tl.program_id(0)
    item = tl.program_id(1)
    row, split, chunk = find_item(
        item, lengths, sequences, wanted, window, HAS_WINDOW, TILE, SPLITS_MAX
    )
    if row >= sequences:
        return
    length = tl.load(lengths + row)
    first_seen = 0
    if HAS_WINDOW:
        first_seen = tl.maximum(length - window, 0)
    begin = first_seen // TILE * TILE
    count = tl.cdiv(length - begin, chunk)
    begin += split * chunk
    end = tl.minimum(begin + chunk, length)

    heads = kv_head * GROUP + tl.arange(0, ROWS)
    dims = tl.arange(0, DIMS)
    lanes = tl.arange(0, TILE)
    real_row = tl.arange(0, ROWS) < GROUP
    real = real_row[:, None] & (dims < HEAD_DIM)[None, :]
    of_head = heads[:, None] * HEAD_DIM + dims[None, :]
    row_start = row.to(tl.int64) * query_stride
    rotated = tl.load(query + row_start + of_head, mask=real, other=0.0)
    values_start = blocks.to(tl.int64) * (BLOCK_SIZE * KV_HEADS * HEAD_DIM)
    table = block_tables + row.to(tl.int64) * table_stride

    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    attended = tl.zeros([ROWS, DIMS], tl.float32)
    for tile in range(begin, end, TILE):
        alive = tile + lanes < end
        starts = token_offsets(table, tile, alive, kv_head, KV_HEADS, HEAD_DIM, BLOCK_SIZE, TILE)
        places = kv_cache + starts[:, None] + dims[None, :]
        held = alive[:, None] & (dims < HEAD_DIM)[None, :]
        keys = widened(tl.load(places, mask=held, other=0.0), rotated.dtype)
        scores = tl.dot(rotated, tl.trans(keys), input_precision="ieee")
        scores = base2_scores(scores, scale, soft_cap, HAS_CAP)
        seen = alive
        if HAS_WINDOW:
            seen = seen & (tile + lanes >= first_seen)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        values = widened(tl.load(places + values_start, mask=held, other=0.0), rotated.dtype)
        # No chunk is empty, and each one's first tile has a token that is seen.
        highest, total, attended = add_tile(scores, values, highest, total, attended, False)

    # Without a token nothing was added up: zeros.
    result = attended / tl.where(length > 0, total, 1.0)[:, None] * value_scale
    if count <= 1:
        row_out = out + row.to(tl.int64) * (KV_HEADS * GROUP * HEAD_DIM)
        tl.store(row_out + of_head, result.to(out.dtype.element_ty), mask=real)
    else:
        item_heads = item.to(tl.int64) * (KV_HEADS * GROUP)
        tl.store(partials + item_heads * HEAD_DIM + of_head, result, mask=real)
        tl.store(log_sums + item_heads + heads, highest + tl.log2(total), mask=real_row)
    if (split == 0) & (kv_head == 0):
        tl.store(splits + row * 2, item)
        tl.store(splits + row * 2 + 1, count)


@triton.jit
def _combine_kernel(
    out,
    partials,
    log_sums,
    splits,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    SPLITS_MAX: tl.constexpr,
):
    row = tl.program_id(0)
    head = tl.program_id(1)
    count = tl.load(splits + row * 2 + 1)
    if count <= 1:
        return
    first = tl.load(splits + row * 2)
    lanes = tl.arange(0, SPLITS_MAX)
    dims = tl.arange(0, DIMS)
    places = (first + lanes).to(tl.int64) * HEADS + head
    log_sum = tl.load(log_sums + places, mask=lanes < count, other=float("-inf"))
    weights = tl.exp2(log_sum - tl.max(log_sum, 0))
    held = (lanes < count)[:, None] & (dims < HEAD_DIM)[None, :]
    parts = tl.load(partials + places[:, None] * HEAD_DIM + dims[None, :], mask=held, other=0.0)
    result = tl.sum(parts * weights[:, None], 0) / tl.sum(weights, 0)
    row_out = out + (row.to(tl.int64) * HEADS + head) * HEAD_DIM
    tl.store(row_out + dims, result.to(out.dtype.element_ty), mask=dims < HEAD_DIM)
