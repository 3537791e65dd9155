"""The sections of `make bench-gpu` in their order: what must be right, then what it takes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from loadtests.gpu_bench import attention, elementwise, end_to_end, products, sampling
from loadtests.gpu_bench.case import Case
from loadtests.gpu_bench.measure import Check, Measurement, Timing
from loadtests.gpu_bench.sizes import FULL, Experts, Sizes

_EXPERTS = Experts("small", 8, 2, 128, 192)
_FP16 = torch.float16


@dataclass(frozen=True, slots=True)
class Section:
    """Measurements that belong together; a heading in the table."""

    name: str
    measurements: Sequence[Measurement]


def sections(sizes: Sizes) -> list[Section]:
    """One more of them: one more line here, whose measurements make their rows themselves."""
    return [
        Section("right", [*checks()]),
        Section("decode attention", [*map(Timing, attention.decode_cases(sizes))]),
        Section("prefill attention", [*map(Timing, attention.prefill_cases(sizes))]),
        Section("element-wise", [*map(Timing, elementwise.cases(sizes))]),
        Section("sampler", [*map(Timing, sampling.cases(sizes))]),
        Section("mixture of experts", [*map(Timing, products.moe_cases(sizes))]),
        Section("quantised weights", [*map(Timing, products.quantised_cases(sizes))]),
        Section("whole models", [*end_to_end.measurements(sizes.whole_models)]),
    ]


def checks() -> Iterator[Check]:
    """Every operation; attention in both dtypes that models have."""
    yield from map(Check, small())
    yield from (Check(case, _FP16) for case in small() if "attention" in case.operation)


def small() -> Iterator[Case]:
    """Cases of every operation that a reference in float64 is quick at: heads and widths of a
    model, so that the kernels compiled here are those that are timed."""
    hidden, intermediate = FULL.hidden, FULL.intermediate
    yield elementwise.norm("rms_norm", 3, hidden)
    yield elementwise.norm("add_rms_norm", 3, hidden)
    yield elementwise.silu(3, intermediate)
    yield elementwise.rope(35, FULL)
    yield elementwise.mask(5, 1000)
    lengths = [1, 17, 257, 3000]
    yield attention.decode([1, 1, 1], FULL, "3 × 1")
    yield attention.decode([3000], FULL, "1 × 3,000")
    yield attention.decode(lengths, FULL, "ragged")
    yield attention.decode(lengths, FULL, "ragged, window 100, cap 2", 100, 2.0)
    yield attention.decode(lengths, FULL, "ragged, fp8 cache", fp8=True)
    new, contexts = [1, 70, 33, 130], [1, 70, 500, 1030]
    yield attention.prefill([1, 1], [1, 300], FULL, "2 of one token")
    yield attention.prefill([300], [300], FULL, "300 of 300")
    yield attention.prefill(new, contexts, FULL, "ragged")
    yield attention.prefill(new, contexts, FULL, "ragged, window 100, cap 2", 100, 2.0)
    yield attention.prefill(new, contexts, FULL, "ragged, fp8 cache", fp8=True)
    for rows, vocabulary in ((64, 1000), (6, FULL.vocabulary)):
        yield sampling.sample(rows, vocabulary, "mixed")
    yield from (products.moe(tokens, _EXPERTS) for tokens in (5, 200))
    for operation in ("matmul_int8", "matmul_int4", "matmul_fp8"):
        for rows in (3, 70):
            yield products.matmul(operation, rows, 256, 192, FULL.group)
