"""Causal attention of runs of new tokens over a paged KV cache, ragged batches at once, in Triton.

The new tokens of each sequence are cut into query tiles; with tiles of 4, sequences of 9 and 3:

    new tokens     0 1 2 3 | 4 5 6 7 | 8           9 10 11
    programs       tile 0    tile 1    tile 2      tile 3      (and some past the last: they return)

1.  Program (KV head, tile) finds its sequence. The heads of the KV head are rows beside each other:
    row = token · group + head, so that a tile of keys is read once for all of them.
2.  Everything is read from the cache, the prefix found there and the new tokens alike:

        keys    0 ............ prefix ............|...... new ......
        tile        full    full    full    full  | full ╲
                                                           ╲ diagonal
        window  skip   skip   left    full    full  full  ╲

    Full tiles are seen by every row and need no mask; those on the diagonal, and at the window's
    left edge, do.

3.  Where tiles are too few to fill the GPU, as those of a short question after a long cached
    prompt, the full tiles of keys are split among several programs, whose results a second kernel
    weighs (`attention_prefill_splits`).

Programs with most keys, the last of a sequence, start first: what ends the step is then short.

Sources: Dao 2023, arXiv:2307.08691 (query tiles, work by causal masks); Kwon et al. 2023,
arXiv:2309.06180 (paged attention).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
import triton
import triton.language as tl

from kernels.kv_cache import FP8, scales_of
from kernels.triton_ops.attention_items import find_tile
from kernels.triton_ops.attention_prefill_splits import Splits, combine, splits_of_tile
from kernels.triton_ops.attention_tile import add_tile, base2_scores, token_offsets
from kernels.triton_ops.fp8 import as_stored, widened
from kernels.triton_ops.launch_rules import PREFILL, ROWS_FEW, kind


def paged_attention_prefill(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    query_offsets: torch.Tensor,
    context_lengths: torch.Tensor,
    scale: float,
    *,
    window: int | None = None,
    soft_cap: float | None = None,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> torch.Tensor:
    """Causal attention of runs of new tokens to everything before them and to themselves.

    Args:
        query: [tokens, heads, head_dim], the new tokens of all sequences one after the other;
            rows may be apart, a row is contiguous.
        kv_cache: [2, blocks, block_size, kv_heads, head_dim], contiguous, in query's dtype (bf16,
            fp16 or fp32) or float8_e4m3fn; holds the new tokens already. block_size: a power of
            two, 16 to 64.
        block_tables: [sequences, max_blocks] int32.
        query_offsets: [sequences + 1] int32: sequence i's tokens are rows
            [query_offsets[i], query_offsets[i + 1]), the last of its context.
        context_lengths: [sequences] int32: tokens in the cache, the new ones included.
        scale: Usually 1 / sqrt(head_dim).
        window: A token sees only so many last tokens, itself included; None: all.
        soft_cap: Scores s, scaled, become soft_cap · tanh(s / soft_cap); None: they stay.
        key_scale, value_scale: What a key and a value of float8 are multiplied by; of no meaning
            in query's dtype.

    Returns:
        [tokens, heads, head_dim] in query's dtype.
    """
    tokens, heads, head_dim = query.shape
    _, blocks, block_size, kv_heads, _ = kv_cache.shape
    sequences = block_tables.shape[0]
    assert kv_cache.is_contiguous()
    assert kv_cache.shape[4] == head_dim
    assert kv_cache.dtype in (query.dtype, FP8)
    assert query.stride()[1:] == (head_dim, 1)
    assert query_offsets.shape == (sequences + 1,)
    assert context_lengths.shape == (sequences,)
    assert block_tables.dtype == query_offsets.dtype == context_lengths.dtype == torch.int32
    assert block_tables.stride(1) == query_offsets.stride(0) == context_lengths.stride(0) == 1
    assert heads % kv_heads == 0
    assert window is None or window > 0
    key_scale, value_scale = scales_of(kv_cache, key_scale, value_scale)

    group = heads // kv_heads
    # Tiles of few rows, when sequences have no more new ones on average: chunks' ends, prefix hits.
    few = tokens * group <= ROWS_FEW * sequences
    launch = PREFILL.launch(
        kind(query.device),
        query.element_size(),
        kv_cache.element_size(),
        head_dim,
        block_size,
        group,
        few,
    )
    tiles = tokens // (launch["ROWS"] // group) + sequences
    out = torch.empty((tokens, heads, head_dim), dtype=query.dtype, device=query.device)
    context_max = block_tables.shape[1] * block_size
    splits = Splits(query.device, kv_heads, tiles, context_max, launch["ROWS"], launch["DIMS"])
    _prefill_kernel[(kv_heads, tiles, splits.count)](
        out,
        splits.partials,
        splits.log_sums,
        query,
        as_stored(kv_cache),
        block_tables,
        query_offsets,
        context_lengths,
        sequences,
        blocks,
        query.stride(0),
        block_tables.stride(0),
        scale * key_scale,
        window or 0,
        float(soft_cap or 0),  # an int would be another type, and compiled again
        value_scale,
        KV_HEADS=kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        HAS_WINDOW=window is not None,
        HAS_CAP=soft_cap is not None,
        **launch,
    )
    if splits.count > 1:
        combine(out, splits, query_offsets, context_lengths, window, kv_heads, launch)
    return out


@triton.jit
def _walk(
    begin,
    end,
    state,
    rotated,
    positions,
    keys_start,
    values_start,
    table,
    kv_head,
    scale,
    window,
    soft_cap,
    MASKED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
):
    """The running softmax over tokens [begin, end), `begin` a multiple of TILE.

    If not MASKED, `end` is one, too, and every row sees all of them.
    """
    highest, total, attended = state
    lanes = tl.arange(0, TILE)
    dims = tl.arange(0, DIMS)
    for tile in range(begin, end, TILE):
        alive = tl.full([TILE], True, tl.int1)
        if MASKED:
            alive = tile + lanes < end
        starts = token_offsets(table, tile, alive, kv_head, KV_HEADS, HEAD_DIM, BLOCK_SIZE, TILE)
        places = starts[:, None] + dims[None, :]
        held = alive[:, None] & (dims < HEAD_DIM)[None, :]
        keys = widened(tl.load(keys_start + places, mask=held, other=0.0), rotated.dtype)
        scores = tl.dot(rotated, tl.trans(keys), input_precision="ieee")
        scores = base2_scores(scores, scale, soft_cap, HAS_CAP)
        if MASKED:
            seen = (tile + lanes)[None, :] <= positions[:, None]
            if HAS_WINDOW:
                seen = seen & ((tile + lanes)[None, :] > positions[:, None] - window)
            scores = tl.where(seen, scores, float("-inf"))
        values = widened(tl.load(values_start + places, mask=held, other=0.0), rotated.dtype)
        # A row may see nothing of a masked tile, which may be a program's first.
        highest, total, attended = add_tile(scores, values, highest, total, attended, MASKED)
    return highest, total, attended


@triton.jit(
    do_not_specialize=["sequences", "blocks", "table_stride", "window"],
    do_not_specialize_on_alignment=["block_tables", "offsets", "lengths"],
)
def _prefill_kernel(
    out,
    partials,
    log_sums,
    query,
    kv_cache,
    block_tables,
    offsets,
    lengths,
    sequences,
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
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
):
    TOKENS: tl.constexpr = ROWS // GROUP
    kv_head = tl.program_id(0)
    tile_id = tl.num_programs(1) - 1 - tl.program_id(1)
    row, index = find_tile(tile_id, offsets, sequences, TOKENS)
    begin = tl.load(offsets + row)
    new = tl.load(offsets + row + 1) - begin
    if index * TOKENS >= new:
        return
    first = tl.load(lengths + row) - new + index * TOKENS
    count = tl.minimum(TOKENS, new - index * TOKENS)
    last = first + count - 1
    split = tl.program_id(2)
    full_begin, full_end, chunk, splits = splits_of_tile(
        first, last, window, tl.num_programs(2), TILE, HAS_WINDOW
    )
    if split >= splits:
        return

    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, DIMS)
    # Rows past the last token repeat it, so that no row sees nothing, but are not written.
    tokens = tl.minimum(rows // GROUP, count - 1)
    real = (rows < count * GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    of_head = (kv_head * GROUP + rows % GROUP)[:, None] * HEAD_DIM + dims[None, :]
    token_rows = (begin + index * TOKENS + tokens).to(tl.int64)[:, None]
    rotated = tl.load(query + token_rows * query_stride + of_head, mask=real, other=0.0)
    positions = first + tokens
    values_start = kv_cache + blocks.to(tl.int64) * (BLOCK_SIZE * KV_HEADS * HEAD_DIM)
    table = block_tables + row.to(tl.int64) * table_stride

    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    attended = tl.zeros([ROWS, DIMS], tl.float32)
    state = (highest, total, attended)
    if HAS_WINDOW:
        seen_begin = tl.maximum(first - window + 1, 0) // TILE * TILE
        state = _walk(
            seen_begin, tl.where(split == 0, full_begin, seen_begin), state,
            rotated, positions, kv_cache, values_start, table, kv_head, scale, window, soft_cap,
            True, KV_HEADS, HEAD_DIM, DIMS, BLOCK_SIZE, TILE, HAS_WINDOW, HAS_CAP,
        )  # fmt: skip
    split_begin = full_begin + split * chunk
    state = _walk(
        split_begin, tl.minimum(split_begin + chunk, full_end), state,
        rotated, positions, kv_cache, values_start, table, kv_head, scale, window, soft_cap,
        False, KV_HEADS, HEAD_DIM, DIMS, BLOCK_SIZE, TILE, HAS_WINDOW, HAS_CAP,
    )  # fmt: skip
    state = _walk(
        full_end, tl.where(split == splits - 1, last + 1, full_end), state,
        rotated, positions, kv_cache, values_start, table, kv_head, scale, window, soft_cap,
        True, KV_HEADS, HEAD_DIM, DIMS, BLOCK_SIZE, TILE, HAS_WINDOW, HAS_CAP,
    )  # fmt: skip
    highest, total, attended = state
    # A split may have nothing for some rows: zeros of no weight.
    result = attended / tl.where(total > 0, total, 1.0)[:, None] * value_scale
    if splits == 1:
        row_out = out + token_rows * (KV_HEADS * GROUP * HEAD_DIM) + of_head
        tl.store(row_out, result.to(out.dtype.element_ty), mask=real)
    else:
        item = (tile_id.to(tl.int64) * tl.num_programs(2) + split) * KV_HEADS + kv_head
        tl.store(partials + item * (ROWS * DIMS) + rows[:, None] * DIMS + dims[None, :], result)
        tl.store(log_sums + item * ROWS + rows, highest + tl.log2(total))
