"""Attention over a paged KV cache, for one new token a sequence and for runs of new tokens.

Keys and values of a sequence are gathered from its blocks, then given to torch's fused attention.
The query heads that share a KV head are rows of one small matrix (decode) or read the same keys
through a stride of zero (prefill), so keys and values are never repeated.
"""

from functools import partial

import torch
from torch.nn.functional import scaled_dot_product_attention

from kernels.kv_cache import FP8, scales_of

# Sequences attend together while their padded keys fit a core's L2 cache: 1,024 tokens of
# 3 · 64 bf16 keys and values are 0.75 MiB. One long sequence at a time was 1.5 times faster than
# a padded batch of 16; short ones together save the calls.
_GROUP_TOKENS_MAX = 1024
# Padding this much costs less than one more call.
_GROUP_SLACK_TOKENS = 64


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
        query: [sequences, heads, head_dim].
        kv_cache: [2, blocks, block_size, kv_heads, head_dim] in query's dtype or float8_e4m3fn;
            holds the last token already.
        block_tables: [sequences, max_blocks] int32.
        context_lengths: [sequences] int32, at least 1: tokens in the cache, the last included.
        scale: Usually 1 / sqrt(head_dim).
        window: Only so many last tokens are seen, the token itself included; None: all.
        soft_cap: Scores s, scaled, become soft_cap · tanh(s / soft_cap); None: they stay.
        key_scale, value_scale: What a key and a value of float8 are multiplied by; of no meaning
            in query's dtype.

    Returns:
        [sequences, heads, head_dim] in query's dtype.

    Sources: Kwon et al. 2023, arXiv:2309.06180 (paged attention); Gemma Team 2024,
    arXiv:2408.00118 §2 (sliding window, soft cap).
    """
    sequences, heads, head_dim = query.shape
    kv_heads = kv_cache.shape[3]
    assert block_tables.shape[0] == sequences == context_lengths.shape[0]
    assert heads % kv_heads == 0
    assert window is None or window > 0
    key_scale, value_scale = scales_of(kv_cache, key_scale, value_scale)
    attend = partial(
        _attend_group,
        scale=scale * key_scale,
        window=window,
        soft_cap=soft_cap,
        value_scale=value_scale,
    )
    grouped = query.reshape(sequences, kv_heads, heads // kv_heads, head_dim)
    lengths: list[int] = context_lengths.tolist()
    groups = _groups(lengths)
    if len(groups) == 1:
        out = attend(grouped, kv_cache, block_tables, lengths)
        return out.reshape(sequences, heads, head_dim)
    out = torch.empty_like(grouped)
    for members in groups:
        if len(members) == 1:  # views instead of copies
            one = slice(members[0], members[0] + 1)
            out[one] = attend(grouped[one], kv_cache, block_tables[one], lengths[one])
            continue
        rows = torch.tensor(members, device=query.device)
        member_lengths = [lengths[member] for member in members]
        out[rows] = attend(grouped[rows], kv_cache, block_tables[rows], member_lengths)
    return out.view(sequences, heads, head_dim)


def _groups(lengths: list[int]) -> list[list[int]]:
    """Rows of about equal length together, as many as fit _GROUP_TOKENS_MAX padded tokens."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[row]
        if groups:
            last = groups[-1]
            fits = (len(last) + 1) * length <= _GROUP_TOKENS_MAX
            if fits and length <= 2 * lengths[last[0]] + _GROUP_SLACK_TOKENS:
                last.append(row)
                continue
        groups.append([row])
    return groups


def _attend_group(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    lengths: list[int],
    scale: float,
    window: int | None,
    soft_cap: float | None,
    value_scale: float,
) -> torch.Tensor:
    """One padded attention: query [n, kv_heads, heads / kv_heads, head_dim] -> the same shape."""
    longest = max(lengths)
    if min(lengths) == longest and (window is None or window >= longest):
        keys, values = _gather_blocks(kv_cache, block_tables, longest, query.dtype)
        return _attend(query, keys, values, None, scale, soft_cap, value_scale)
    limits = torch.tensor(lengths, device=query.device).unsqueeze(1)
    positions = torch.arange(longest, device=query.device).unsqueeze(0)
    # Padding repeats a sequence's last token: what lies past it may be NaN, and 0 · NaN is NaN.
    last = torch.minimum(positions, limits - 1)
    keys, values = _gather_tokens(kv_cache, block_tables, last, query.dtype)
    seen = positions < limits
    if window is not None:
        seen &= positions >= limits - window
    return _attend(query, keys, values, seen[:, None, None, :], scale, soft_cap, value_scale)


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    seen: torch.Tensor | None,
    scale: float,
    soft_cap: float | None,
    value_scale: float,
) -> torch.Tensor:
    """[..., rows, head_dim] to [..., length, head_dim] where `seen`; torch's own has no cap."""
    if soft_cap is None:
        attended = scaled_dot_product_attention(query, keys, values, attn_mask=seen, scale=scale)
        return _times(attended, value_scale)
    scores = query.float() @ keys.float().transpose(-1, -2) * scale
    scores = soft_cap * torch.tanh(scores / soft_cap)
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    return _times(scores.softmax(-1) @ values.float(), value_scale).to(query.dtype)


def _times(attended: torch.Tensor, value_scale: float) -> torch.Tensor:
    return attended if value_scale == 1.0 else attended * value_scale


def _gather_blocks(
    kv_cache: torch.Tensor, block_tables: torch.Tensor, length: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [n, kv_heads, length, head_dim] of n sequences of one length, in `dtype`."""
    _, _, block_size, kv_heads, head_dim = kv_cache.shape
    count = block_tables.shape[0]
    used = -(-length // block_size)
    indices = block_tables[:, :used].reshape(-1)

    def pick(one: torch.Tensor) -> torch.Tensor:
        picked = _rows(one, indices, dtype)
        return picked.view(count, used * block_size, kv_heads, head_dim)[:, :length].transpose(1, 2)

    return pick(kv_cache[0]), pick(kv_cache[1])


def _gather_tokens(
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    positions: torch.Tensor,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [n, kv_heads, length, head_dim] at `positions` [n, length] of n sequences."""
    _, blocks, block_size, kv_heads, head_dim = kv_cache.shape
    table = block_tables.long()
    slots = table.gather(1, positions // block_size) * block_size + positions % block_size

    def pick(one: torch.Tensor) -> torch.Tensor:
        flat = one.view(blocks * block_size, kv_heads, head_dim)
        rows = _rows(flat, slots.view(-1), dtype)
        return rows.view(*positions.shape, kv_heads, head_dim).transpose(1, 2)

    return pick(kv_cache[0]), pick(kv_cache[1])


def _rows(cached: torch.Tensor, indices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`cached[indices]` in `dtype`; float8 is picked as bytes, which every device can."""
    if cached.dtype != FP8:
        return cached.index_select(0, indices)
    return cached.view(torch.uint8).index_select(0, indices).view(FP8).to(dtype)


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
        query: [tokens, heads, head_dim], the new tokens of all sequences one after the other.
        kv_cache: [2, blocks, block_size, kv_heads, head_dim] in query's dtype or float8_e4m3fn;
            holds the new tokens already.
        block_tables: [sequences, max_blocks] int32.
        query_offsets: [sequences + 1] int32: sequence i's tokens are rows
            [query_offsets[i], query_offsets[i + 1]), at least one, the last of its context.
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
    kv_heads = kv_cache.shape[3]
    assert heads % kv_heads == 0
    offsets: list[int] = query_offsets.tolist()
    lengths: list[int] = context_lengths.tolist()
    assert offsets[0] == 0
    assert offsets[-1] == tokens
    assert len(offsets) == len(lengths) + 1
    assert window is None or window > 0
    key_scale, value_scale = scales_of(kv_cache, key_scale, value_scale)
    scale *= key_scale
    per_kv_head = heads // kv_heads
    out = torch.empty_like(query)
    for row, length in enumerate(lengths):
        start, end = offsets[row], offsets[row + 1]
        new = end - start
        assert 0 < new <= length
        table = block_tables[row : row + 1]
        keys, values = _gather_blocks(kv_cache, table, length, query.dtype)
        # [kv_heads, heads / kv_heads, tokens, head_dim]: the heads of one KV head share its keys.
        rows = query[start:end].view(new, kv_heads, per_kv_head, head_dim).permute(1, 2, 0, 3)
        shape = (kv_heads, per_kv_head, length, head_dim)
        keys, values = (each[0].unsqueeze(1).expand(shape) for each in (keys, values))
        if new == length and soft_cap is None and (window is None or window >= length):
            attended = scaled_dot_product_attention(rows, keys, values, is_causal=True, scale=scale)
            attended = _times(attended, value_scale)
        else:
            last_seen = torch.arange(length - new, length, device=query.device).unsqueeze(1)
            positions = torch.arange(length, device=query.device)
            seen = positions <= last_seen
            if window is not None:
                seen &= positions > last_seen - window
            attended = _attend(rows, keys, values, seen, scale, soft_cap, value_scale)
        out[start:end] = attended.permute(2, 0, 1, 3).reshape(new, heads, head_dim)
    return out
