"""Cases of attention over a paged cache: one new token a sequence, and runs of new tokens."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from kernels import floors
from kernels.kv_cache import FP8
from loadtests.gpu_bench.case import Arguments, Case, Run, Share, random
from loadtests.gpu_bench.paged import BLOCK_SIZE, cache_and_tables, contiguous
from loadtests.gpu_bench.sizes import Sizes

_DECODE_TARGET, _PREFILL_TARGET = Share(0.85), Share(0.60)


def decode_cases(sizes: Sizes) -> Iterator[Case]:
    for context in sizes.contexts:
        for batch in sizes.batches:
            yield decode([context] * batch, sizes, f"{batch} × {context:,}")
    ragged = f"{len(sizes.ragged)} × {min(sizes.ragged):,} to {max(sizes.ragged):,}"
    yield decode(sizes.ragged, sizes, ragged)
    for batch in (min(sizes.batches), max(sizes.batches)):
        context = sizes.contexts[0]
        yield decode([context] * batch, sizes, f"{batch} × {context:,}, fp8 cache", fp8=True)


def decode(
    lengths: Sequence[int],
    sizes: Sizes,
    shape: str,
    window: int | None = None,
    soft_cap: float | None = None,
    *,
    fp8: bool = False,
) -> Case:
    heads, kv_heads, head_dim = sizes.heads, sizes.kv_heads, sizes.head_dim

    def make(dtype: torch.dtype, device: torch.device) -> Arguments:
        cache, tables = cache_and_tables(lengths, kv_heads, head_dim, dtype, device)
        cache = cache.to(FP8) if fp8 else cache
        return {
            "query": random(len(lengths), heads, head_dim)(dtype, device),
            "kv_cache": cache,
            "block_tables": tables,
            "context_lengths": torch.tensor(lengths, dtype=torch.int32, device=device),
            "scale": head_dim**-0.5,
            "window": window,
            "soft_cap": soft_cap,
        }

    work = floors.paged_attention_decode(
        lengths, heads, kv_heads, head_dim, cache_itemsize=1 if fp8 else 2
    )
    return Case("paged_attention_decode", shape, work, make, target=_DECODE_TARGET)


def prefill_cases(sizes: Sizes) -> Iterator[Case]:
    for new, context in sizes.prefills:
        yield prefill([new], [context], sizes, f"{new:,} of {context:,}")


def prefill(
    new: Sequence[int],
    lengths: Sequence[int],
    sizes: Sizes,
    shape: str,
    window: int | None = None,
    soft_cap: float | None = None,
    *,
    fp8: bool = False,
) -> Case:
    heads, kv_heads, head_dim = sizes.heads, sizes.kv_heads, sizes.head_dim
    offsets = list(accumulate(new, initial=0))

    def make(dtype: torch.dtype, device: torch.device) -> Arguments:
        cache, tables = cache_and_tables(lengths, kv_heads, head_dim, dtype, device)
        cache = cache.to(FP8) if fp8 else cache
        return {
            "query": random(offsets[-1], heads, head_dim)(dtype, device),
            "kv_cache": cache,
            "block_tables": tables,
            "query_offsets": torch.tensor(offsets, dtype=torch.int32, device=device),
            "context_lengths": torch.tensor(lengths, dtype=torch.int32, device=device),
            "scale": head_dim**-0.5,
            "window": window,
            "soft_cap": soft_cap,
        }

    work = floors.paged_attention_prefill(
        new, lengths, heads, kv_heads, head_dim, cache_itemsize=1 if fp8 else 2
    )
    # torch's causal mask is for as many queries as keys.
    whole = list(new) == list(lengths) and len(new) == 1 and lengths[0] % BLOCK_SIZE == 0
    return Case("paged_attention_prefill", shape, work, make, target=_PREFILL_TARGET,
                rivals=_sdpa_rivals() if whole else {})  # fmt: skip


def _sdpa_rivals() -> dict[str, Callable[[Arguments], Run]]:
    backends = {
        "SDPA flash": SDPBackend.FLASH_ATTENTION,
        "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
        "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    return {name: partial(sdpa, backend) for name, backend in backends.items()}


def sdpa(backend: SDPBackend, given: Arguments) -> Run:
    """One of torch's fused attentions over contiguous keys and values, made before it is timed.

    Where a backend cannot share keys among query heads, it is given a copy for each.
    """
    query, scale = given["query"], given["scale"]
    heads = query.transpose(0, 1)[None].contiguous()
    keys, values = contiguous(given)
    shared = backend is not SDPBackend.EFFICIENT_ATTENTION
    if not shared:
        times = heads.shape[1] // keys.shape[1]
        keys, values = (one.repeat_interleave(times, dim=1) for one in (keys, values))

    def run() -> torch.Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(
                heads, keys, values, is_causal=True, scale=scale, enable_gqa=shared
            )

    return run
