"""Serving compiles no kernel: whatever varies from step to step chooses none that is new.

Triton runs for a GPU that is not there: it specialises, and counts, but compiles and launches
nothing.
"""

import importlib.util
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
import triton

from kernels import triton_ops
from kernels.compiles import compiled_kernels, count_compiled_kernels
from tests.kernels.device import INTERPRETED
from tests.kernels.fake_gpu import counted, jit_functions

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")

BF16, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, VOCABULARY = torch.bfloat16, 8, 2, 128, 1024, 128256
BLOCK_SIZE, INTERMEDIATE, EXPERTS, TOP_K = 16, 512, 8, 2
STEP_TOKENS_MAX, CONTEXT_TOKENS_MAX = 2048, 8192
# Tensors of a step are views that begin anywhere in longer ones, aligned or not.
OFFSETS = (0, 1, 2, 3, 7)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Sequences by the new tokens of each, after `prefix_tokens` that are in the cache already.

    One new token is a decode, more are a prefill.
    """

    new_tokens: tuple[int, ...]
    prefix_tokens: int


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fresh count on a GPU that is none; no trace of either is left."""
    with counted(monkeypatch):
        yield


def view(count: int, dtype: torch.dtype, offset: int, *, fill: int = 0) -> torch.Tensor:
    return torch.full((offset + count,), fill, dtype=dtype)[offset:]


class Model:
    """Weights of every operation there is, and a cache, like those of a small Llama."""

    def __init__(self) -> None:
        self.norm = torch.empty(HIDDEN, dtype=BF16)
        self.head_norm = torch.empty(HEAD_DIM, dtype=BF16)
        self.experts = (
            torch.empty(EXPERTS, 2 * INTERMEDIATE, HIDDEN, dtype=BF16),
            torch.empty(EXPERTS, HIDDEN, INTERMEDIATE, dtype=BF16),
        )
        self.bytes = torch.empty(HIDDEN, HIDDEN, dtype=torch.int8)
        self.nibbles = torch.empty(HIDDEN, HIDDEN // 2, dtype=torch.uint8)
        self.scales = torch.empty(HIDDEN)
        self.group_scales = torch.empty(HIDDEN, HIDDEN // 128)
        self.group_zeros = torch.empty(HIDDEN, HIDDEN // 128, dtype=torch.uint8)

    def run(self, step: Step, *, blocks: int = 64, offset: int = 0, spare_blocks: int = 0) -> None:
        """Every operation at the step's shapes, with caches and tables of any size."""
        tokens = sum(step.new_tokens)
        x = torch.empty(tokens, HIDDEN, dtype=BF16)
        triton_ops.rms_norm(x, self.norm, 1e-5)
        triton_ops.add_rms_norm(x, torch.empty_like(x), self.norm, 1e-5)
        triton_ops.silu_mul(torch.empty(tokens, 2 * INTERMEDIATE, dtype=BF16))
        triton_ops.moe(
            x, torch.randn(tokens, EXPERTS), *self.experts, TOP_K, renormalise=True, first_expert=0
        )
        triton_ops.matmul_int8(x, self.bytes, self.scales)
        triton_ops.matmul_fp8(x, self.bytes.view(torch.float8_e4m3fn), self.scales)
        triton_ops.matmul_int4(x, self.nibbles, self.group_scales, self.group_zeros)

        qkv = torch.empty(tokens, HEADS + 2 * KV_HEADS, HEAD_DIM, dtype=BF16)
        triton_ops.rms_norm(qkv[:, :HEADS].reshape(-1, HEAD_DIM), self.head_norm, 1e-5)
        angles = torch.empty(2, tokens, HEAD_DIM // 2)
        cache = torch.empty(2, blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM, dtype=BF16)
        slots = view(tokens, torch.int64, offset)
        query = triton_ops.rope_and_cache_write(qkv, angles[0], angles[1], cache, slots)
        self._attend(query, cache, step, offset, spare_blocks)
        self._sample(len(step.new_tokens), offset)

    def _attend(
        self, query: torch.Tensor, cache: torch.Tensor, step: Step, offset: int, spare_blocks: int
    ) -> None:
        """Decodes, which come first, and prefills, as two calls."""
        decodes = sum(new == 1 for new in step.new_tokens)
        prefills = len(step.new_tokens) - decodes
        context = step.prefix_tokens + max(step.new_tokens)
        wide = -(-context // BLOCK_SIZE) + spare_blocks

        def table(sequences: int) -> torch.Tensor:
            return view(sequences * wide, torch.int32, offset).view(sequences, wide)

        for window, cap in ((None, None), (100, 30)):
            limits = {"window": window, "soft_cap": cap}
            if decodes:
                lengths = view(decodes, torch.int32, offset, fill=context)
                triton_ops.paged_attention_decode(
                    query[:decodes], cache, table(decodes), lengths, 0.1, **limits
                )
            if prefills:
                offsets = view(prefills + 1, torch.int32, offset)
                lengths = view(prefills, torch.int32, offset, fill=context)
                triton_ops.paged_attention_prefill(
                    query[decodes:], cache, table(prefills), offsets, lengths, 0.1, **limits
                )

    def _sample(self, rows: int, offset: int) -> None:
        logits = torch.empty(rows, VOCABULARY, dtype=BF16)
        words = -(-VOCABULARY // 32)
        masks = view(rows * words, torch.int32, offset).view(rows, words)
        triton_ops.logits_mask(logits, masks)
        floats = [view(rows, torch.float32, offset) for _ in range(3)]
        integers = [view(rows, torch.int64, offset) for _ in range(3)]
        triton_ops.sample(
            logits, floats[0], integers[0], floats[1], floats[2], integers[1], integers[2]
        )


def warm(model: Model) -> None:
    """Steps of twice and twice as many tokens, of one sequence and of many, with tables that have
    room for a long one, as a replica's have."""
    model.run(Step(new_tokens=(1,), prefix_tokens=CONTEXT_TOKENS_MAX - 1))
    count = 2
    while count <= STEP_TOKENS_MAX:
        model.run(Step(new_tokens=(count,), prefix_tokens=0), spare_blocks=83)
        model.run(Step(new_tokens=(2,) * (count // 2), prefix_tokens=0), spare_blocks=83)
        count *= 2


def any_step(rng: random.Random) -> Step:
    """Some decodes, some prefills, a prefix that they share; within the limits."""
    decodes = rng.choice((0, 1, 2, 15, 16, 17, 64, 100, 256))
    prefills = [rng.choice((2, 3, 16, 17, 100, 255)) for _ in range(rng.randrange(4))]
    prefix = rng.choice((0, 1, 15, 16, 17, 255, 256, 257, 1000, 1601))
    return Step(new_tokens=(1,) * decodes + tuple(prefills or (5,)), prefix_tokens=prefix)


def test_after_the_warm_up_no_step_compiles_a_kernel() -> None:
    count_compiled_kernels()
    model, rng = Model(), random.Random(0)
    warm(model)
    warmed = compiled_kernels()
    assert warmed > 0
    for _ in range(150):
        step = any_step(rng)
        blocks, spare_blocks = rng.choice((1, 7, 16, 1000)), rng.choice((0, 1, 6, 83))
        offset = rng.choice(OFFSETS)
        model.run(step, blocks=blocks, offset=offset, spare_blocks=spare_blocks)
        assert compiled_kernels() == warmed, (step, blocks, offset, spare_blocks)


def test_the_warm_up_launches_every_kernel_there_is() -> None:
    warm(Model())
    launched = {name for name, one in jit_functions().items() if one.device_caches}
    # Those that are called by other kernels alone have no launch of their own.
    expected = {"_gate_up", "_down", "_combine_kernel", "_decode_kernel", "_prefill_kernel"}
    expected |= {name for name in jit_functions() if name.endswith("_kernel")}
    assert launched == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda: triton_ops.silu_mul(torch.empty(3, 128, dtype=BF16)),
        lambda: triton_ops.silu_mul(torch.empty(3, 256, dtype=torch.float32)),
    ],
    ids=["width", "dtype"],
)
def test_what_does_choose_a_kernel_is_counted(change: Callable[[], object]) -> None:
    count_compiled_kernels()
    triton_ops.silu_mul(torch.empty(3, 256, dtype=BF16))
    triton_ops.silu_mul(torch.empty(5, 256, dtype=BF16))
    assert compiled_kernels() == 1
    change()
    assert compiled_kernels() == 2


def test_a_hook_from_before_is_still_called_and_none_counts_twice() -> None:
    seen: list[str] = []
    triton.knobs.runtime.jit_post_compile_hook = lambda **told: seen.append(told["fn"].name)
    count_compiled_kernels()
    count_compiled_kernels()
    triton_ops.silu_mul(torch.empty(3, 256, dtype=BF16))
    assert seen == ["silu_mul_kernel"]
    assert compiled_kernels() == 1


def test_without_triton_there_is_nothing_to_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    count_compiled_kernels()
    assert compiled_kernels() == 0
    assert triton.knobs.runtime.jit_post_compile_hook is None
