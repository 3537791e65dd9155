"""What each operation must move and compute at least, and so how fast a GPU could do it at best.

Only what has to pass the memory bus is counted: every input once, every output once, and of a KV
cache what the sequences hold, in bytes that may be another number an item (`cache_itemsize`) than
those of queries (`itemsize`). A multiplication and an addition are two operations.

Source: Williams et al. 2009, "Roofline" (CACM 52/4).
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Work:
    """Bytes moved and floating-point operations done, at least."""

    bytes: float
    operations: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.bytes + other.bytes, self.operations + other.operations)


@dataclass(frozen=True, slots=True)
class Gpu:
    """Its memory's bandwidth, and its rate of dense bf16 products, as its maker says."""

    name: str
    bytes_per_s: float
    operations_per_s: float

    def floor_s(self, work: Work) -> float:
        """No less time than that."""
        return max(work.bytes / self.bytes_per_s, work.operations / self.operations_per_s)


H100 = Gpu("H100 SXM", 3.35e12, 989e12)


def rms_norm(tokens: int, hidden: int, itemsize: int = 2) -> Work:
    return Work((2 * tokens + 1) * hidden * itemsize, 4 * tokens * hidden)


def add_rms_norm(tokens: int, hidden: int, itemsize: int = 2) -> Work:
    """x and residual in, both out."""
    return Work((4 * tokens + 1) * hidden * itemsize, 5 * tokens * hidden)


def silu_mul(tokens: int, intermediate: int, itemsize: int = 2) -> Work:
    return Work(3 * tokens * intermediate * itemsize, 5 * tokens * intermediate)


def rope_and_cache_write(
    tokens: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    itemsize: int = 2,
    cache_itemsize: int = 2,
) -> Work:
    """Queries are read and written, keys and values read and written elsewhere; angles in fp32."""
    rows = tokens * head_dim
    read_and_written = 2 * (heads + kv_heads) * itemsize + 2 * kv_heads * cache_itemsize
    moved = read_and_written * rows + 4 * rows + 8 * tokens
    return Work(moved, 3 * (heads + kv_heads) * rows)


def paged_attention_decode(
    lengths: Sequence[int],
    heads: int,
    kv_heads: int,
    head_dim: int,
    itemsize: int = 2,
    cache_itemsize: int = 2,
) -> Work:
    """Each sequence's keys and values once, for all heads that share them."""
    cached = sum(lengths)
    queries = 2 * len(lengths) * heads * head_dim
    keys_values = 2 * cached * kv_heads * head_dim
    return Work(keys_values * cache_itemsize + queries * itemsize, 4 * cached * heads * head_dim)


def paged_attention_prefill(
    new: Sequence[int],
    lengths: Sequence[int],
    heads: int,
    kv_heads: int,
    head_dim: int,
    itemsize: int = 2,
    cache_itemsize: int = 2,
) -> Work:
    """
    Args:
        new: Of each sequence, the last tokens of its `lengths` that attend.
    """
    # Token i of the n new ones of a context of c sees c - n + i + 1 tokens.
    seen = sum(n * (c - n) + n * (n + 1) // 2 for n, c in zip(new, lengths, strict=True))
    keys_values = 2 * sum(lengths) * kv_heads * head_dim
    queries = 2 * sum(new) * heads * head_dim
    return Work(keys_values * cache_itemsize + queries * itemsize, 4 * seen * heads * head_dim)


def matmul(rows: int, inner: int, columns: int, itemsize: int = 2) -> Work:
    moved = (rows * inner + inner * columns + rows * columns) * itemsize
    return Work(moved, 2 * rows * inner * columns)


def quantised_matmul(
    rows: int, inner: int, columns: int, bits: int, scale_bytes: float, itemsize: int = 2
) -> Work:
    """
    Args:
        bits: Of a weight.
        scale_bytes: All scales and zeros.
    """
    moved = rows * (inner + columns) * itemsize + inner * columns * bits / 8 + scale_bytes
    return Work(moved, 2 * rows * inner * columns)


def moe(
    tokens: int, top_k: int, experts: int, hidden: int, intermediate: int, itemsize: int = 2
) -> Work:
    """Each of the `experts` that are taken is read once."""
    weights = 3 * min(experts, tokens * top_k) * hidden * intermediate
    return Work(
        (weights + 2 * tokens * hidden) * itemsize,
        6 * tokens * top_k * hidden * intermediate,
    )


def sample(rows: int, vocabulary: int, itemsize: int = 2) -> Work:
    return Work(rows * vocabulary * itemsize, rows * vocabulary)


def logits_mask(rows: int, vocabulary: int, forbidden: int, itemsize: int = 2) -> Work:
    """One bit a token read, and a logit written for each of the `forbidden` tokens of all rows."""
    return Work(rows * vocabulary / 8 + forbidden * itemsize, rows * vocabulary)
