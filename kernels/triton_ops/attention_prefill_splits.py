"""Prefill attention's keys split among programs, where tiles of queries alone do not fill the GPU.

The full tiles of keys of one query tile, with chunks of 256 tokens:

    keys        | left edge of a window | full ............................ | diagonal |
    split         0                       0 | 1 | 2 | 3                        3

Each split but the only one writes its result, normalised, with the logarithm of each row's sum, to
scratch; `combine` weighs them as the decode kernel's are:
out = Σᵢ 2^(log_sumᵢ - max) · partialᵢ / Σᵢ 2^(log_sumᵢ - max).

Source: Dao et al. 2023, "Flash-Decoding".
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from collections.abc import Mapping

import torch
import triton
import triton.language as tl

from kernels.ahead import Case
from kernels.triton_ops.attention_items import CHUNK_TOKENS_MIN, find_tile
from kernels.triton_ops.launch_rules import processors

_SPLITS_MAX = 16
# As many programs are wanted for each streaming multiprocessor.
_PROGRAMS_PER_PROCESSOR = 2
_COMBINE_WARPS = 8


class Splits:
    """How many there are at most of each tile, and the scratch for their results.

    Attributes:
        count: 1 where tiles are enough.
        partials: fp32; log_sums: fp32, in base 2; both by tile, split, KV head and row.
    """

    def __init__(
        self,
        device: torch.device,
        kv_heads: int,
        tiles: int,
        context_max: int,
        rows: int,
        dims: int,
    ) -> None:
        """
        Args:
            context_max: Tokens that the block tables have room for.
            rows, dims: Of a tile of queries.
        """
        wanted = processors(device) * _PROGRAMS_PER_PROCESSOR // (kv_heads * tiles)
        possible = -(-context_max // CHUNK_TOKENS_MIN.value)
        self.count = max(1, min(_SPLITS_MAX, wanted, possible))
        held = tiles * self.count * kv_heads * rows if self.count > 1 else 0
        self.partials = torch.empty(held * dims, dtype=torch.float32, device=device)
        self.log_sums = torch.empty(held, dtype=torch.float32, device=device)


@triton.jit
def splits_of_tile(first, last, window, splits_max, TILE: tl.constexpr, HAS_WINDOW: tl.constexpr):
    """Of the tile of queries at positions [first, last]: the tokens [begin, end) in tiles that each
    row sees whole, how many of them a split has, and how many splits there are, at least 1."""
    begin = 0
    end = (first + 1) // TILE * TILE
    if HAS_WINDOW:
        begin = tl.cdiv(tl.maximum(last - window + 1, 0), TILE) * TILE
        begin = tl.minimum(begin, end)
    wanted = tl.minimum(splits_max, tl.cdiv(end - begin, CHUNK_TOKENS_MIN))
    chunk = tl.cdiv(tl.cdiv(end - begin, tl.maximum(wanted, 1)), TILE) * TILE
    return begin, end, chunk, tl.maximum(tl.cdiv(end - begin, tl.maximum(chunk, 1)), 1)


def combine(
    out: torch.Tensor,
    splits: Splits,
    query_offsets: torch.Tensor,
    context_lengths: torch.Tensor,
    window: int | None,
    kv_heads: int,
    launch: Mapping[str, int],
) -> None:
    """Writes to `out` the rows of all tiles that were split.

    Args:
        out: [tokens, heads, head_dim].
        query_offsets, context_lengths: As of the attention.
        launch: Its ROWS, DIMS and TILE.
    """
    tiles = len(splits.log_sums) // (splits.count * kv_heads * launch["ROWS"])
    _combine_splits_kernel[(kv_heads, tiles)](
        out,
        splits.partials,
        splits.log_sums,
        query_offsets,
        context_lengths,
        len(context_lengths),
        splits.count,
        window or 0,
        KV_HEADS=kv_heads,
        GROUP=out.shape[1] // kv_heads,
        ROWS=launch["ROWS"],
        HEAD_DIM=out.shape[2],
        DIMS=launch["DIMS"],
        TILE=launch["TILE"],
        HAS_WINDOW=window is not None,
        num_warps=_COMBINE_WARPS,
        num_stages=2,
    )


@triton.jit(
    do_not_specialize=["sequences", "splits_max", "window"],
    do_not_specialize_on_alignment=["offsets", "lengths"],
)
def _combine_splits_kernel(
    out,
    partials,
    log_sums,
    offsets,
    lengths,
    sequences,
    splits_max,
    window,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    TOKENS: tl.constexpr = ROWS // GROUP
    kv_head = tl.program_id(0)
    tile_id = tl.program_id(1)
    row, index = find_tile(tile_id, offsets, sequences, TOKENS)
    begin = tl.load(offsets + row)
    new = tl.load(offsets + row + 1) - begin
    if index * TOKENS >= new:
        return
    first = tl.load(lengths + row) - new + index * TOKENS
    count = tl.minimum(TOKENS, new - index * TOKENS)
    _, _, _, splits = splits_of_tile(first, first + count - 1, window, splits_max, TILE, HAS_WINDOW)
    if splits == 1:
        return

    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, DIMS)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    summed = tl.zeros([ROWS, DIMS], tl.float32)
    for split in range(splits):
        item = (tile_id.to(tl.int64) * splits_max + split) * KV_HEADS + kv_head
        log_sum = tl.load(log_sums + item * ROWS + rows)
        part = tl.load(partials + item * (ROWS * DIMS) + rows[:, None] * DIMS + dims[None, :])
        now_highest = tl.maximum(highest, log_sum)
        # Of a row that has seen nothing yet: no -inf - (-inf).
        pivot = tl.where(now_highest == float("-inf"), 0.0, now_highest)
        weight = tl.exp2(log_sum - pivot)
        fading = tl.exp2(highest - pivot)
        total = total * fading + weight
        summed = summed * fading[:, None] + part * weight[:, None]
        highest = now_highest
    real = (rows < count * GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    token_rows = (begin + index * TOKENS + rows // GROUP).to(tl.int64)[:, None]
    of_head = (kv_head * GROUP + rows % GROUP)[:, None] * HEAD_DIM + dims[None, :]
    row_out = out + token_rows * (KV_HEADS * GROUP * HEAD_DIM) + of_head
    tl.store(row_out, (summed / total[:, None]).to(out.dtype.element_ty), mask=real)


def cases() -> list[Case]:
    """The second kernel after tiles of few rows and of many."""
    shapes = ((16, 128, 64), (128, 64, 64), (128, 128, 64), (64, 256, 32))
    return [_case(rows, head_dim, tile) for rows, head_dim, tile in shapes]


def _case(rows: int, head_dim: int, tile: int) -> Case:
    floats = {"out": "*bf16", "partials": "*fp32", "log_sums": "*fp32"}
    tables = dict.fromkeys(("offsets", "lengths"), "*i32")
    numbers = dict.fromkeys(("sequences", "splits_max", "window"), "i32")
    return Case(
        name=f"prefill combine bf16 {head_dim} rows {rows}",
        kernel=_combine_splits_kernel,
        types={**floats, **tables, **numbers},
        constants={
            "KV_HEADS": 8,
            "GROUP": 4,
            "ROWS": rows,
            "HEAD_DIM": head_dim,
            "DIMS": head_dim,
            "TILE": tile,
            "HAS_WINDOW": False,
        },
        aligned=tuple(floats),
        num_warps=_COMBINE_WARPS,
        num_stages=2,
    )
