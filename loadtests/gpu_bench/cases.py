"""What `make bench-gpu` checks and measures: operations at the shapes of models people serve."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from kernels import floors
from kernels.floors import Work
from kernels.kv_cache import FP8

Arguments = dict[str, Any]
BLOCK_SIZE = 16
# Llama 3.1 8B: 32 heads on 8, of 128; hidden 4096, intermediate 14336; vocabulary 128256.
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
HIDDEN, INTERMEDIATE, VOCABULARY = 4096, 14336, 128256


@dataclass(frozen=True, slots=True)
class Case:
    """One operation at one shape.

    Attributes:
        operation: Its name in the backends.
        shape: For the table.
        work: What it must move and compute.
        make: Its arguments, anew at each call, of a dtype on a device.
        changed: Names of arguments that it writes: compared like its result.
        bound: "memory" or "arithmetic": which ceiling it is measured against.
        rival: What torch itself has for it, called with the same arguments; None: nothing.
    """

    operation: str
    shape: str
    work: Work
    make: Callable[[torch.dtype, torch.device], Arguments]
    changed: Sequence[str] = ()
    bound: str = "memory"
    rival: Callable[..., torch.Tensor] | None = None

    def call(self, backend: ModuleType, arguments: Arguments) -> Any:
        return getattr(backend, self.operation)(**arguments)


def _random(*shape: int) -> Callable[[torch.dtype, torch.device], torch.Tensor]:
    return lambda dtype, device: torch.randn(shape, device=device).to(dtype)


def _norm(operation: str, tokens: int) -> Case:
    def make(dtype: torch.dtype, device: torch.device) -> Arguments:
        made = {"x": _random(tokens, HIDDEN), "weight": _random(HIDDEN)}
        if operation == "add_rms_norm":
            made["residual"] = _random(tokens, HIDDEN)
        return {name: one(dtype, device) for name, one in made.items()} | {"eps": 1e-5}

    changed = ("residual",) if operation == "add_rms_norm" else ()
    work = getattr(floors, operation)(tokens, HIDDEN)
    return Case(operation, f"{tokens} × {HIDDEN}", work, make, changed)


def _silu(tokens: int) -> Case:
    def make(dtype: torch.dtype, device: torch.device) -> Arguments:
        return {"gate_up": _random(tokens, 2 * INTERMEDIATE)(dtype, device)}

    work = floors.silu_mul(tokens, INTERMEDIATE)
    return Case("silu_mul", f"{tokens} × {INTERMEDIATE}", work, make)


def _cache(
    lengths: Sequence[int], dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """A cache whose blocks lie in a random order, and the tables of these sequences."""
    counts = [-(-length // BLOCK_SIZE) for length in lengths]
    order = torch.randperm(sum(counts), device=device).to(torch.int32)
    tables = torch.zeros(len(lengths), max(counts), dtype=torch.int32, device=device)
    taken = 0
    for row, count in enumerate(counts):
        tables[row, :count] = order[taken : taken + count]
        taken += count
    cache = _random(2, sum(counts), BLOCK_SIZE, KV_HEADS, HEAD_DIM)(dtype, device)
    return cache, tables


def _rope(tokens: int) -> Case:
    def make(dtype: torch.dtype, device: torch.device) -> Arguments:
        cache, _ = _cache([tokens], dtype, device)
        angles = torch.rand(tokens, HEAD_DIM // 2, device=device)
        return {
            "qkv": _random(tokens, HEADS + 2 * KV_HEADS, HEAD_DIM)(dtype, device),
            "cosine": angles.cos(),
            "sine": angles.sin(),
            "kv_cache": cache,
            "slots": torch.randperm(tokens, device=device),
        }

    work = floors.rope_and_cache_write(tokens, HEADS, KV_HEADS, HEAD_DIM)
    return Case("rope_and_cache_write", f"{tokens} tokens", work, make, ("kv_cache",))


def _decode(batch: int, context: int, fp8: bool = False) -> Case:
    lengths = [context] * batch

    def make(dtype: torch.dtype, device: torch.device) -> Arguments:
        cache, tables = _cache(lengths, FP8 if fp8 else dtype, device)
        return {
            "query": _random(batch, HEADS, HEAD_DIM)(dtype, device),
            "kv_cache": cache,
            "block_tables": tables,
            "context_lengths": torch.tensor(lengths, dtype=torch.int32, device=device),
            "scale": HEAD_DIM**-0.5,
        }

    cached = 1 if fp8 else 2
    work = floors.paged_attention_decode(lengths, HEADS, KV_HEADS, HEAD_DIM, cache_itemsize=cached)
    shape = f"{batch} × {context:,}" + (", fp8 cache" if fp8 else "")
    return Case("paged_attention_decode", shape, work, make)


def _prefill(new: int, context: int, fp8: bool = False) -> Case:
    def make(dtype: torch.dtype, device: torch.device) -> Arguments:
        cache, tables = _cache([context], FP8 if fp8 else dtype, device)
        return {
            "query": _random(new, HEADS, HEAD_DIM)(dtype, device),
            "kv_cache": cache,
            "block_tables": tables,
            "query_offsets": torch.tensor([0, new], dtype=torch.int32, device=device),
            "context_lengths": torch.tensor([context], dtype=torch.int32, device=device),
            "scale": HEAD_DIM**-0.5,
        }

    work = floors.paged_attention_prefill(
        [new], [context], HEADS, KV_HEADS, HEAD_DIM, cache_itemsize=1 if fp8 else 2
    )
    shape = f"{new:,} of {context:,}" + (", fp8 cache" if fp8 else "")
    rival = _sdpa if new == context and not fp8 else None
    return Case("paged_attention_prefill", shape, work, make, (), "arithmetic", rival)


def _sdpa(query: torch.Tensor, scale: float, **_: Any) -> torch.Tensor:
    """torch's fused attention, of contiguous keys and values of the same shape."""
    tokens = len(query)
    heads = query.view(tokens, HEADS, HEAD_DIM).transpose(0, 1)[None]
    keys = query[:, :KV_HEADS].transpose(0, 1)[None]
    return torch.nn.functional.scaled_dot_product_attention(
        heads, keys, keys, is_causal=True, scale=scale, enable_gqa=True
    )


def _moe(tokens: int, top_k: int, experts: int, hidden: int, intermediate: int) -> Case:
    def make(dtype: torch.dtype, device: torch.device) -> Arguments:
        return {
            "x": _random(tokens, hidden)(dtype, device),
            "router_logits": _random(tokens, experts)(dtype, device),
            "gate_up": _random(experts, 2 * intermediate, hidden)(dtype, device) / hidden**0.5,
            "down": _random(experts, hidden, intermediate)(dtype, device) / intermediate**0.5,
            "top_k": top_k,
            "renormalise": True,
        }

    work = floors.moe(tokens, top_k, experts, hidden, intermediate)
    bound = "memory" if tokens < experts else "arithmetic"
    return Case("moe", f"{tokens:,} tokens, {top_k} of {experts}", work, make, (), bound)


def small() -> Iterator[Case]:
    """To be compared with a reference in float64."""
    yield from (_norm("rms_norm", 3), _norm("add_rms_norm", 3), _silu(3), _rope(35))
    yield from (_decode(3, 1), _decode(2, 257), _decode(1, 3000))
    yield from (_prefill(1, 1), _prefill(70, 70), _prefill(33, 500))
    yield from (_decode(2, 257, fp8=True), _prefill(33, 500, fp8=True))
    yield from (_moe(5, 2, 8, 128, 192), _moe(200, 2, 4, 128, 192))


def large() -> Iterator[Case]:
    """To be measured."""
    for tokens in (64, 8192):
        yield from (_norm("rms_norm", tokens), _norm("add_rms_norm", tokens))
        yield from (_silu(tokens), _rope(tokens))
    for batch, context in ((1, 1024), (1, 8192), (1, 32768), (16, 1024), (16, 8192),
                           (64, 1024), (64, 8192), (256, 1024)):  # fmt: skip
        yield _decode(batch, context)
    for new, context in ((2048, 2048), (8192, 8192), (32768, 32768), (512, 8192)):
        yield _prefill(new, context)
    for batch, context in ((1, 8192), (64, 8192)):
        yield _decode(batch, context, fp8=True)
    yield _prefill(512, 8192, fp8=True)
    for tokens in (1, 64, 4096):
        yield _moe(tokens, 8, 128, 2048, 768)  # Qwen 3 30B A3B
