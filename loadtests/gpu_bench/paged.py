"""Paged caches for cases: blocks lie in a random order, as they do in a replica that has served."""

from collections.abc import Sequence

import torch

from loadtests.gpu_bench.case import Arguments, random

BLOCK_SIZE = 16


def cache_and_tables(
    lengths: Sequence[int], kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """A cache that holds sequences of these lengths, and their block tables."""
    counts = [-(-length // BLOCK_SIZE) for length in lengths]
    order = torch.randperm(sum(counts), device=device).to(torch.int32)
    tables = torch.zeros(len(lengths), max(counts), dtype=torch.int32, device=device)
    taken = 0
    for row, count in enumerate(counts):
        tables[row, :count] = order[taken : taken + count]
        taken += count
    cache = random(2, sum(counts), BLOCK_SIZE, kv_heads, head_dim)(dtype, device)
    return cache, tables


def contiguous(given: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [sequences, kv_heads, length, head_dim], as attention without blocks wants
    them; all sequences of one length, which fills its blocks."""
    cache, tables = given["kv_cache"], given["block_tables"]
    sequences, blocks = tables.shape
    _, _, block_size, kv_heads, head_dim = cache.shape
    picked = cache[:, tables.long().view(-1)]
    picked = picked.view(2, sequences, blocks * block_size, kv_heads, head_dim).transpose(2, 3)
    keys, values = picked.contiguous()
    return keys, values
