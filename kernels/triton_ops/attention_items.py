"""Which piece of which sequence a program works on, found on the GPU from the sequences' lengths.

The grid is an upper bound that the host knows; programs past the last piece return at once. Every
program looks at all lengths, LANES at a time: for most batches one load and a few reductions, in
place of a kernel before it, or of a binary search, whose loads wait for one another.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl

# Shorter chunks cost more in scratch and in the combining kernel than the programs they add save.
CHUNK_TOKENS_MIN = tl.constexpr(256)
LANES = tl.constexpr(256)


@triton.jit
def _spans(lengths, sequences, start, window, HAS_WINDOW: tl.constexpr, TILE: tl.constexpr):
    """Rows from `start` on, and how many tokens each has without the tiles before its window."""
    rows = start + tl.arange(0, LANES)
    spans = tl.load(lengths + rows, mask=rows < sequences, other=0)
    if HAS_WINDOW:
        spans -= tl.maximum(spans - window, 0) // TILE * TILE
    return rows, spans


@triton.jit
def find_item(
    item,
    lengths,
    sequences,
    wanted,
    window,
    HAS_WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    SPLITS_MAX: tl.constexpr,
):
    """An item's sequence, which of its chunks it is, and a chunk's tokens.

    The sequence is `sequences` for items past the last. An empty sequence has one item, too, which
    writes its zeros.
    """
    total = 0
    longest = 0
    for start in range(0, sequences, LANES):
        _, spans = _spans(lengths, sequences, start, window, HAS_WINDOW, TILE)
        total += tl.sum(spans)
        longest = tl.maximum(longest, tl.max(spans))
    chunk = tl.maximum(tl.cdiv(total, wanted), tl.cdiv(longest, SPLITS_MAX))
    chunk = tl.cdiv(tl.maximum(chunk, CHUNK_TOKENS_MIN), TILE) * TILE

    row = 0
    first = 0
    before = 0
    for start in range(0, sequences, LANES):
        rows, spans = _spans(lengths, sequences, start, window, HAS_WINDOW, TILE)
        counts = tl.where(rows < sequences, tl.maximum(tl.cdiv(spans, chunk), 1), 0)
        ends = before + tl.cumsum(counts, 0)
        passed = (ends <= item) & (rows < sequences)
        row += tl.sum(passed.to(tl.int32))
        first = tl.maximum(first, tl.max(tl.where(passed, ends, 0)))
        before += tl.sum(counts)
    return row, item - first, chunk


@triton.jit
def find_tile(tile, offsets, sequences, TOKENS: tl.constexpr):
    """A query tile's sequence, and which of its tiles of TOKENS new tokens it is.

    Sequence i's tiles begin at offsets[i] // TOKENS + i: that leaves room for ⌈n / TOKENS⌉ tiles
    of n tokens wherever they begin, and at most one tile too many a sequence.
    """
    row = -1
    for start in range(0, sequences, LANES):
        rows = start + tl.arange(0, LANES)
        begins = tl.load(offsets + rows, mask=rows < sequences, other=0) // TOKENS + rows
        row += tl.sum(((begins <= tile) & (rows < sequences)).to(tl.int32))
    return row, tile - tl.load(offsets + row) // TOKENS - row
