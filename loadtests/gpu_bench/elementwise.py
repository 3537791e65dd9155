"""Cases of what only moves bytes: norms, the gated activation, rotary embedding, the token mask."""

from collections.abc import Iterator

import torch

from kernels import floors
from loadtests.gpu_bench.case import Arguments, Case, Run, Share, random
from loadtests.gpu_bench.paged import BLOCK_SIZE, cache_and_tables
from loadtests.gpu_bench.sizes import Sizes

_TARGET = Share(0.85)
_EPS = 1e-5
# A grammar allows few tokens: one word of 32 in so many has some.
_ALLOWED_WORDS = 64


def cases(sizes: Sizes) -> Iterator[Case]:
    for tokens in sizes.tokens:
        yield norm("rms_norm", tokens, sizes.hidden)
        yield norm("add_rms_norm", tokens, sizes.hidden)
        yield silu(tokens, sizes.intermediate)
        yield rope(tokens, sizes)
    for rows in sizes.sampled_rows:
        yield mask(rows, sizes.vocabulary)


def norm(operation: str, tokens: int, hidden: int) -> Case:
    def make(dtype: torch.dtype, device: torch.device) -> Arguments:
        made = {"x": random(tokens, hidden), "weight": random(hidden)}
        if operation == "add_rms_norm":
            made["residual"] = random(tokens, hidden)
        return {name: one(dtype, device) for name, one in made.items()} | {"eps": _EPS}

    changed = ("residual",) if operation == "add_rms_norm" else ()
    rivals = {"F.rms_norm": _torch_norm} if operation == "rms_norm" else {}
    work = floors.rms_norm if operation == "rms_norm" else floors.add_rms_norm
    return Case(operation, f"{tokens:,} × {hidden:,}", work(tokens, hidden), make, changed,
                target=_TARGET, rivals=rivals)  # fmt: skip


def _torch_norm(given: Arguments) -> Run:
    x, weight = given["x"], given["weight"]
    return lambda: torch.nn.functional.rms_norm(x, weight.shape, weight, _EPS)


def silu(tokens: int, intermediate: int) -> Case:
    def make(dtype: torch.dtype, device: torch.device) -> Arguments:
        return {"gate_up": random(tokens, 2 * intermediate)(dtype, device)}

    work = floors.silu_mul(tokens, intermediate)
    return Case("silu_mul", f"{tokens:,} × {intermediate:,}", work, make, target=_TARGET,
                rivals={"silu, then mul": _torch_silu})  # fmt: skip


def _torch_silu(given: Arguments) -> Run:
    gate, up = given["gate_up"].chunk(2, dim=-1)
    return lambda: torch.nn.functional.silu(gate).mul_(up)


def rope(tokens: int, sizes: Sizes) -> Case:
    heads, kv_heads, head_dim = sizes.heads, sizes.kv_heads, sizes.head_dim

    def make(dtype: torch.dtype, device: torch.device) -> Arguments:
        cache, _ = cache_and_tables([tokens], kv_heads, head_dim, dtype, device)
        angles = torch.rand(tokens, head_dim // 2, device=device)
        slots = -(-tokens // BLOCK_SIZE) * BLOCK_SIZE
        return {
            "qkv": random(tokens, heads + 2 * kv_heads, head_dim)(dtype, device),
            "cosine": angles.cos(),
            "sine": angles.sin(),
            "kv_cache": cache,
            "slots": torch.randperm(slots, device=device)[:tokens],
        }

    work = floors.rope_and_cache_write(tokens, heads, kv_heads, head_dim)
    return Case("rope_and_cache_write", f"{tokens:,} tokens", work, make, ("kv_cache",),
                target=_TARGET)  # fmt: skip


def mask(rows: int, vocabulary: int) -> Case:
    words = -(-vocabulary // 32)

    def make(dtype: torch.dtype, device: torch.device) -> Arguments:
        bits = torch.randint(-(2**31), 2**31, (rows, words), dtype=torch.int32, device=device)
        some = torch.arange(rows * words, device=device).view(rows, words) % _ALLOWED_WORDS == 0
        return {
            "logits": random(rows, vocabulary)(dtype, device),
            "masks": bits.masked_fill_(~some, 0),
        }

    # Of the words that allow some tokens half the bits are 1.
    forbidden = round(rows * vocabulary * (1 - 0.5 / _ALLOWED_WORDS))
    work = floors.logits_mask(rows, vocabulary, forbidden)
    return Case("logits_mask", f"{rows} × {vocabulary:,}", work, make, ("logits",), target=_TARGET,
                rivals={"masked_fill_": _torch_mask})  # fmt: skip


def _torch_mask(given: Arguments) -> Run:
    """Of a mask of bools that is there already."""
    logits, masks = given["logits"], given["masks"]
    tokens = torch.arange(logits.shape[1], device=logits.device)
    words = masks[:, tokens // 32]
    forbidden = ((words >> (tokens % 32).to(torch.int32)) & 1) == 0
    return lambda: logits.masked_fill_(forbidden, -torch.inf)
