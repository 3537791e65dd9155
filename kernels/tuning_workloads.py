"""What tuning measures: operations on a GPU at a class's shapes, with steps of different sizes.

Each workload is called with several sets of arguments in turn, so that no cache holds what the
next call reads, and replayed as a CUDA graph, so that the host's part is not measured.
"""

from collections.abc import Callable

import torch
import triton
import triton.testing
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from kernels import triton_ops
from kernels.kv_cache import FP8
from kernels.launches import CannotRun, Launch, Rule, using
from kernels.triton_ops.launch_rules import DECODE, MATMUL_INT4, MOE, PREFILL, ROWS_FEW, kind

Call = Callable[[], torch.Tensor]
Make = Callable[[], Call]

_KV_HEADS = 8
_ROTATED_BYTES = 256 * 2**20  # more than any GPU's last cache holds
_ROTATIONS_MAX = 8
_TOLERANCE = 2e-2  # of the largest number: launches differ by the order of sums
# (sequences, context tokens) of decodes: one long sequence is as important as a full batch.
_DECODES = ((1, 8192), (64, 2048))
# (sequences, new tokens, context tokens) of prefills.
_PREFILLS = ((1, 2048, 2048), (4, 512, 2560))
_MANY_TOKENS = (256, 2048)
_DTYPES = {2: torch.bfloat16, 4: torch.float32}


def bench(run: Callable[[], object]) -> float:
    """Median seconds of one call, as a CUDA graph."""
    return float(triton.testing.do_bench_cudagraph(run, rep=20, return_mode="median")) / 1e3


class Measurement:
    """`kernels.tuning.Measure` on a GPU. Keeps the arguments of the class it measured last."""

    def __init__(
        self,
        device: torch.device,
        bench: Callable[[Callable[[], object]], float] = bench,
        rotated_bytes: int = _ROTATED_BYTES,
    ) -> None:
        self._device = device
        self._bench = bench
        self._rotated_bytes = rotated_bytes
        self._of: tuple[str, tuple[int, ...]] | None = None
        self._calls: list[list[Call]] = []
        self._expected: list[torch.Tensor] = []

    def __call__(self, rule: Rule, shape: tuple[int, ...], launch: Launch) -> list[float]:
        """Seconds of each of the class's workloads.

        Raises:
            CannotRun: the launch does not compile, does not fit, or gives other results than the
                class's first that ran.
        """
        if self._of != (rule.kernel, shape):
            self._prepare(rule, shape)
        key = rule.key(kind(self._device), *shape)
        try:
            with using({key: launch}):
                found = [calls[0]() for calls in self._calls]
                self._compare(found)
                return [self._seconds(calls) for calls in self._calls]
        except (CompilationError, OutOfResources, PTXASError, torch.OutOfMemoryError) as error:
            raise CannotRun(f"{type(error).__name__}: {error}".splitlines()[0]) from error
        except RuntimeError as error:
            # What the compiler's passes say; all else is an error of ours or of the GPU.
            if "PassManager" not in str(error):
                raise
            raise CannotRun(str(error).splitlines()[0]) from error

    def _prepare(self, rule: Rule, shape: tuple[int, ...]) -> None:
        self._of, self._calls, self._expected = None, [], []
        torch.manual_seed(0)
        for make, size in workloads(rule, shape, self._device):
            count = min(_ROTATIONS_MAX, max(1, -(-self._rotated_bytes // size)))
            self._calls.append([make() for _ in range(count)])
        self._of = (rule.kernel, shape)

    def _compare(self, found: list[torch.Tensor]) -> None:
        if not self._expected:
            self._expected = found
            return
        for ours, expected in zip(found, self._expected, strict=True):
            error = (ours.double() - expected.double()).abs().max()
            if not bool(error <= _TOLERANCE * expected.double().abs().max()):
                raise CannotRun(f"its results differ by {float(error):.3g}")

    def _seconds(self, calls: list[Call]) -> float:
        def all_of_them() -> None:
            for call in calls:
                call()

        return self._bench(all_of_them) / len(calls)


def workloads(rule: Rule, shape: tuple[int, ...], device: torch.device) -> list[tuple[Make, int]]:
    """Of a class: what makes a call with new arguments, and about how many bytes these have."""
    if rule is DECODE:
        return [_attention(shape, sequences, 1, context, device) for sequences, context in _DECODES]
    if rule is PREFILL:
        *attention, few = shape
        sizes = [(16, max(1, ROWS_FEW // shape[4]), 2048)] if few else _PREFILLS
        return [_attention((*attention,), *size, device, prefill=True) for size in sizes]
    if rule is MOE:
        *_, experts, few = shape
        top_k = min(experts, 2 if experts <= 8 else 8)
        counts = (1, max(1, ROWS_FEW * experts // top_k)) if few else _moe_tokens(experts, top_k)
        return [_experts(shape, top_k, tokens, device) for tokens in counts]
    counts = (1, ROWS_FEW) if shape[-1] else _MANY_TOKENS
    return [_product(rule, shape, tokens, device) for tokens in counts]


def _moe_tokens(experts: int, top_k: int) -> tuple[int, ...]:
    """Tokens of which experts get many rows each: just so many, and many more."""
    edge = ROWS_FEW * experts // top_k + 1
    return (2 * edge, 8 * edge)


def _attention(
    shape: tuple[int, ...],
    sequences: int,
    new: int,
    context: int,
    device: torch.device,
    *,
    prefill: bool = False,
) -> tuple[Make, int]:
    element_bytes, cache_bytes, head_dim, block_size, group = shape
    dtype, wide = _DTYPES[element_bytes], -(-context // block_size)
    cache_shape = (2, sequences * wide, block_size, _KV_HEADS, head_dim)

    def make() -> Call:
        query = _random(sequences * new, _KV_HEADS * group, head_dim, dtype=dtype, device=device)
        cache = _random(*cache_shape, dtype=dtype, device=device)
        cache = cache.to(FP8) if cache_bytes < element_bytes else cache
        # Blocks lie as they were freed: anywhere.
        blocks = torch.randperm(sequences * wide, device=device, dtype=torch.int32)
        table = blocks.view(sequences, wide)
        lengths = torch.full((sequences,), context, device=device, dtype=torch.int32)
        scale = head_dim**-0.5
        if not prefill:
            return lambda: triton_ops.paged_attention_decode(query, cache, table, lengths, scale)
        offsets = torch.arange(sequences + 1, device=device, dtype=torch.int32) * new
        return lambda: triton_ops.paged_attention_prefill(
            query, cache, table, offsets, lengths, scale
        )

    return make, torch.Size(cache_shape).numel() * cache_bytes


def _experts(
    shape: tuple[int, ...], top_k: int, tokens: int, device: torch.device
) -> tuple[Make, int]:
    element_bytes, hidden, intermediate, experts, _ = shape
    dtype = _DTYPES[element_bytes]

    def make() -> Call:
        x = _random(tokens, hidden, dtype=dtype, device=device)
        logits = _random(tokens, experts, dtype=dtype, device=device)
        gate_up = _random(experts, 2 * intermediate, hidden, dtype=dtype, device=device)
        down = _random(experts, hidden, intermediate, dtype=dtype, device=device)
        gate_up, down = gate_up / hidden**0.5, down / intermediate**0.5
        return lambda: triton_ops.moe(x, logits, gate_up, down, top_k, renormalise=True)

    read = min(experts, tokens * top_k)
    return make, 3 * read * hidden * intermediate * element_bytes


def _product(
    rule: Rule, shape: tuple[int, ...], tokens: int, device: torch.device
) -> tuple[Make, int]:
    element_bytes, inner, columns, *_ = shape
    dtype = _DTYPES[element_bytes]
    operation = getattr(triton_ops, rule.kernel)

    def make() -> Call:
        x = _random(tokens, inner, dtype=dtype, device=device)
        if rule is MATMUL_INT4:
            groups = inner // (2 * shape[3])
            weight = torch.randint(256, (columns, inner // 2), dtype=torch.uint8, device=device)
            scales = torch.rand(columns, groups, device=device)
            zeros = torch.full((columns, groups), 8, dtype=torch.uint8, device=device)
            return lambda: operation(x, weight, scales, zeros)
        whole = torch.randint(-127, 128, (columns, inner), dtype=torch.int8, device=device)
        fp8 = rule.kernel == "matmul_fp8"
        weight = whole.to(torch.float8_e4m3fn) if fp8 else whole
        scales = torch.rand(columns, device=device)
        return lambda: operation(x, weight, scales)

    return make, columns * inner // (2 if rule is MATMUL_INT4 else 1)


def _random(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.randn(shape, device=device).to(dtype)
