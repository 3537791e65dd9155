"""The cases of `make bench-gpu` without a GPU: each is called, and what is wrong is seen."""

import inspect
import math
import time
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from kernels import torch_ops
from loadtests.gpu_bench import attention, measure, sampling
from loadtests.gpu_bench.case import Case, Rival, Run, Share
from loadtests.gpu_bench.measure import Bench, Check, Timing
from loadtests.gpu_bench.results import Verdict
from loadtests.gpu_bench.sections import checks, sections, small
from loadtests.gpu_bench.sizes import FULL, TINY, Sizes

CPU, META = torch.device("cpu"), torch.device("meta")
SMALL = {case.name: case for case in small()}


def timed(sizes: Sizes) -> dict[str, Timing]:
    return {
        f"{section.name}: {one.name}": one
        for section in sections(sizes)
        for one in section.measurements
        if isinstance(one, Timing)
    }


def called_once(runs: Sequence[Run]) -> tuple[float, str]:
    start = time.perf_counter()
    for run in runs:
        run()
    return (time.perf_counter() - start) / len(runs), ""


def bench(backend: object = torch_ops, free_bytes: float = 1e12) -> Bench:
    ceilings = {"memory": 1e10, "arithmetic": 1e11}
    return Bench(CPU, backend, called_once, lambda: free_bytes, ceilings)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(measure, "_ROTATIONS_MAX", 2)


@pytest.mark.parametrize("check", [*checks()], ids=lambda check: check.name)
def test_what_is_right_is_near_the_reference_and_what_is_not_is_seen(check: Check) -> None:
    assert check.run(bench(), "right").verdict is Verdict.RIGHT
    operation = check.case.operation
    right = getattr(torch_ops, operation)

    def wrong(**arguments: torch.Tensor) -> object:
        found = right(**arguments)
        first = found[0] if isinstance(found, tuple) else found
        first[-1] = first[-1] * 1.1 + 1  # one row
        return found

    row = check.run(bench(SimpleNamespace(**{operation: wrong})), "right")
    assert row.verdict is Verdict.WRONG


@pytest.mark.parametrize("operation", ["rms_norm", "logits_mask"])
def test_what_is_not_a_number_is_wrong(operation: str) -> None:
    case = next(one for one in SMALL.values() if one.operation == operation)

    def broken(**arguments: torch.Tensor) -> torch.Tensor:
        found = getattr(torch_ops, operation)(**arguments)
        found[0, 0] = math.nan
        return found

    row = Check(case).run(bench(SimpleNamespace(**{operation: broken})), "right")
    assert row.verdict is Verdict.WRONG


def test_what_a_call_changes_is_compared_too() -> None:
    case = next(one for one in SMALL.values() if one.operation == "rope_and_cache_write")

    def forgetful(kv_cache: torch.Tensor, **rest: torch.Tensor) -> torch.Tensor:
        return torch_ops.rope_and_cache_write(kv_cache=kv_cache.clone(), **rest)

    row = Check(case).run(bench(SimpleNamespace(rope_and_cache_write=forgetful)), "right")
    assert row.verdict is Verdict.WRONG


@pytest.mark.parametrize("sizes", [FULL, TINY], ids=["full", "tiny"])
def test_no_two_rows_can_be_taken_for_each_other(sizes: Sizes) -> None:
    names = [(one.name, case.name) for one in sections(sizes) for case in one.measurements]
    assert len(set(names)) == len(names)


def test_every_operation_is_checked_and_timed_and_attention_in_fp16_too() -> None:
    assert {case.operation for case in small()} == set(torch_ops.__all__)
    assert {one.case.operation for one in timed(FULL).values()} == set(torch_ops.__all__)
    halves = {one.case.operation for one in checks() if one.dtype is torch.float16}
    assert halves == {"paged_attention_decode", "paged_attention_prefill"}


@pytest.mark.parametrize("one", timed(TINY).values(), ids=timed(TINY))
def test_a_tiny_case_is_timed_beside_its_rivals(one: Timing) -> None:
    row = one.run(bench(), "some")
    assert row.us is not None
    assert row.us > 0
    assert row.floor_us is not None
    assert row.target
    if one.case.rivals and one.case.operation != "paged_attention_prefill":
        assert row.rival_us is not None, row.notes
    if isinstance(one.case.target, Rival):
        assert one.case.rivals


# The other rivals draw with other noise, have another weight, or are in the next tests.
COMPARED = ("rms_norm", "silu_mul", "logits_mask", "moe")


@pytest.mark.parametrize("operation", COMPARED)
def test_a_rival_computes_what_the_operation_does(operation: str) -> None:
    for one in timed(TINY).values():
        if one.case.operation != operation:
            continue
        (prepare,) = one.case.rivals.values()
        torch.manual_seed(0)
        found = prepare(one.case.make(torch.float32, CPU))()
        torch.manual_seed(0)
        expected = one.case.call(torch_ops, one.case.make(torch.float32, CPU))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_fused_attention_beside_a_prefill_is_given_its_keys_in_order() -> None:
    case = attention.prefill([32], [32], TINY, "32 of 32")
    assert set(case.rivals) == {"SDPA flash", "SDPA cuDNN", "SDPA efficient"}
    given = case.make(torch.float32, CPU)
    found = attention.sdpa(attention.SDPBackend.MATH, given)()[0].transpose(0, 1)
    torch.testing.assert_close(found, case.call(torch_ops, given), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("mode", "temperature"), [("greedy", 0.0), ("top-k 50, top-p 0.9", 1e-6)], ids=str
)
def test_a_sampling_rival_picks_the_likeliest_when_it_is_cold(
    mode: str, temperature: float
) -> None:
    case = sampling.sample(4, 200, mode)
    given = case.make(torch.float32, CPU)
    given["temperatures"].fill_(temperature)
    (prepare,) = case.rivals.values()
    assert prepare(given)().tolist() == given["logits"].argmax(-1).tolist()


@pytest.mark.parametrize("one", timed(FULL).values(), ids=timed(FULL))
def test_a_large_case_makes_what_the_operation_takes(one: Timing) -> None:
    case = one.case
    wanted = inspect.signature(getattr(torch_ops, case.operation)).parameters
    assert case.make(torch.bfloat16, META).keys() <= wanted.keys()
    assert case.work.bytes > 0
    assert case.work.operations > 0
    # All that is read or written is among the arguments or as large as one of them.
    assert case.argument_bytes() > 0.3 * case.work.bytes
    assert case.argument_bytes() < 78 * 2**30


def test_inputs_that_take_turns_are_more_than_a_cache_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    for one in timed(FULL).values():
        large = one.case.work.bytes * measure.rotations(one.case) >= 100 * 2**20
        assert large or one.case.work.bytes < 2**20, one.name


def test_what_does_not_fit_is_skipped_and_says_so() -> None:
    row = next(iter(timed(FULL).values())).run(bench(free_bytes=4.001 * 2**30), "some")
    assert row.verdict is Verdict.SKIPPED
    assert "GiB" in row.notes


def test_a_rival_that_cannot_run_is_told_and_costs_nothing() -> None:
    def cannot(_: object) -> Run:
        raise RuntimeError("not on\nthis GPU")

    made = SMALL["silu_mul 3 × 14,336"]
    case = Case(made.operation, made.shape, made.work, made.make, rivals={"other": cannot})
    row = Timing(case).run(bench(), "some")
    assert row.verdict is Verdict.TOLD
    assert row.us is not None
    assert row.notes == "other cannot: RuntimeError: not on this GPU"


@pytest.mark.parametrize(
    ("target", "share", "seconds", "rival_s", "expected"),
    [
        (Share(0.85), 0.85, 1.0, None, Verdict.MET),
        (Share(0.85), 0.84, 1.0, 9.0, Verdict.MISSED),
        (Rival(), 0.1, 1.0, 1.0, Verdict.MET),
        (Rival(), 0.9, 1.0, 0.9, Verdict.MISSED),
        (Rival(), 0.9, 1.0, None, Verdict.TOLD),
    ],
    ids=str,
)
def test_a_target_is_met_or_missed(
    target: Share | Rival, share: float, seconds: float, rival_s: float | None, expected: Verdict
) -> None:
    assert measure.verdict(target, share, seconds, rival_s) is expected
