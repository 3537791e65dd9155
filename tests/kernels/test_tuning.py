"""Tuning: what is clearly faster is chosen, what cannot run is told, and the time is bounded."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import triton
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources

from kernels import launches, tuning_workloads
from kernels.launch_file import file_of, read
from kernels.launches import CannotRun, Launch, Rule
from kernels.triton_ops.launch_rules import (
    DECODE,
    MATMUL_FP8,
    MATMUL_INT4,
    MATMUL_INT8,
    MOE,
    PREFILL,
    RULES,
)
from kernels.tuning import Model, choose, classes_of, describe, main, tune
from kernels.tuning_workloads import Measurement
from tests.kernels.device import INTERPRETED
from tests.kernels.fake_gpu import pretend

A, B, C = {"TILE": 16}, {"TILE": 32}, {"TILE": 64}
RULE = Rule("some", {"width": int}, lambda kind, width: A, lambda kind, width: [B, C])
LLAMA = Model(heads=32, kv_heads=8, head_dim=128, hidden=4096, intermediate=14336)
CPU = torch.device("cpu")
needs_to_compile = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ([(A, [1.0]), (B, [0.9]), (C, [0.8])], C),
        ([(A, [1.0]), (B, [0.985])], A),
        ([(A, [1.0]), (B, [0.975])], B),
        ([(A, [1.0, 1.0]), (B, [0.8, 1.1])], B),
        ([(A, [1.0, 100.0]), (B, [2.0, 90.0])], A),
        ([(B, [3.0]), (C, [2.99])], C),
        ([], A),
    ],
    ids=["fastest", "tie", "no-tie", "mean", "each-counts-alike", "no-default", "nothing"],
)
def test_the_fastest_is_chosen_unless_the_default_is_about_as_fast(
    measured: list[tuple[Launch, list[float]]], expected: Launch
) -> None:
    assert choose(A, measured) == expected


class Gpu:
    """Each measurement takes a second of a clock; some launches cannot run."""

    def __init__(self, broken: Sequence[Launch] = ()) -> None:
        self.now_s = 100.0
        self._broken = broken

    def clock(self) -> float:
        return self.now_s

    def __call__(self, rule: Rule, shape: tuple[int, ...], launch: Launch) -> list[float]:
        self.now_s += 1
        if launch in self._broken:
            raise CannotRun("too big")
        return [1 / launch["TILE"]]


def test_what_cannot_run_is_skipped_and_told() -> None:
    gpu = Gpu(broken=[C])
    (one,) = tune([(RULE, (8,))], "sm_90", gpu, budget_s=60, clock=gpu.clock)
    assert one.chosen == B
    assert one.skipped == [(C, "too big")]
    assert "skipped {'TILE': 64}: too big" in describe(one)
    assert "no time" not in describe(one)


def test_a_default_that_cannot_run_does_not_end_it() -> None:
    gpu = Gpu(broken=[A])
    (one,) = tune([(RULE, (8,))], "sm_90", gpu, budget_s=60, clock=gpu.clock)
    assert one.chosen == C
    assert one.skipped == [(A, "too big")]


def test_time_is_shared_among_classes_and_never_exceeded_by_more_than_one_measurement() -> None:
    gpu = Gpu()
    wanted = [(RULE, (width,)) for width in range(4)]
    found = list(tune(wanted, "sm_90", gpu, budget_s=6, clock=gpu.clock))
    assert gpu.now_s <= 107
    assert [len(one.measured) for one in found] == [2, 2, 1, 1]
    assert [one.left for one in found] == [1, 1, 2, 2]
    assert "no time for 1 of its candidates" in describe(found[0])
    assert found[0].chosen == B


def test_without_time_defaults_stay() -> None:
    gpu = Gpu()
    (one,) = tune([(RULE, (8,))], "sm_90", gpu, budget_s=0, clock=gpu.clock)
    assert (one.chosen, one.left) == (A, 3)


def test_the_classes_of_a_model() -> None:
    attention = (2, 2, 128, 16, 4)
    assert classes_of(LLAMA) == [
        (DECODE, attention),
        (PREFILL, (*attention, False)),
        (PREFILL, (*attention, True)),
    ]
    mixtral = Model(
        heads=32, kv_heads=8, head_dim=128, hidden=4096, intermediate=14336, experts=8,
        quantised="int4",
    )  # fmt: skip
    more = classes_of(mixtral)[3:]
    assert (MOE, (2, 4096, 14336, 8, True)) in more
    assert (MATMUL_INT4, (2, 4096, 6144, 64, False)) in more
    assert len(more) == 2 + 4


def test_every_class_is_one_of_its_rules() -> None:
    for quantised in (None, "int8", "fp8", "int4"):
        model = Model(
            heads=8, kv_heads=2, head_dim=64, hidden=512, intermediate=1024, quantised=quantised
        )
        for rule, shape in classes_of(model):
            assert rule.key("sm_90", *shape)
            kinds = [type(one) for one in shape]
            assert kinds == list(rule.fields.values()), rule.kernel


SMALL = {
    DECODE.kernel: (2, 2, 16, 16, 2),
    PREFILL.kernel: (2, 2, 16, 16, 2, False),
    MOE.kernel: (2, 64, 32, 4, True),
    MATMUL_INT8.kernel: (2, 128, 64, False),
    MATMUL_FP8.kernel: (2, 128, 64, True),
    MATMUL_INT4.kernel: (2, 128, 64, 16, False),
}


@needs_to_compile
@pytest.mark.parametrize("kernel", RULES)
def test_workloads_launch_their_class_as_told(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very launch that is measured reaches the kernel; other classes are not looked up."""
    pretend(monkeypatch)
    rule, shape = RULES[kernel], SMALL[kernel]
    looked_up: list[tuple[Launch, bool]] = []
    launch = {**rule.candidates("sm_80", *shape)[0], "num_stages": 7}
    real = Rule.launch

    def watched(self: Rule, kind: str, *of: int) -> Launch:
        found = real(self, kind, *of)
        looked_up.append((found, (self, of) == (rule, shape)))
        return found

    monkeypatch.setattr(Rule, "launch", watched)
    monkeypatch.setattr(torch, "empty", torch.zeros)  # results that can be compared
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)

    def bench(run: Callable[[], object]) -> float:
        run()
        return 0.5

    measure = Measurement(CPU, bench, rotated_bytes=1)
    assert set(measure(rule, shape, launch)) == {0.5}
    assert looked_up
    assert all(found == launch and expected for found, expected in looked_up)
    assert launches._launches.get(rule.key("sm_80", *shape)) is None


class Broken:
    """Workloads whose call fails in the chosen way for the launch that is 'bad'."""

    def __init__(self, failure: Exception | None, wrong: bool = False) -> None:
        self._failure, self._wrong = failure, wrong

    def workloads(
        self, rule: Rule, shape: tuple[int, ...], device: torch.device
    ) -> list[tuple[Callable[[], Callable[[], torch.Tensor]], int]]:
        def call() -> torch.Tensor:
            bad = rule.launch("sm_80", *shape) == B
            if bad and self._failure is not None:
                raise self._failure
            return torch.full((3,), 2.0 if bad and self._wrong else 1.0)

        return [(lambda: call, 1)]


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (Broken(OutOfResources(300, 200, "shared memory")), "OutOfResources: out of resource"),
        (Broken(CompilationError("source", None, "no")), "CompilationError"),
        (Broken(RuntimeError("PassManager::run failed")), "PassManager"),
        (Broken(torch.OutOfMemoryError("out of memory")), "OutOfMemoryError"),
        (Broken(None, wrong=True), "its results differ by 1"),
    ],
    ids=["resources", "compilation", "passes", "memory", "results"],
)
def test_a_launch_that_fails_on_the_gpu_cannot_run(
    broken: Broken, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning_workloads, "workloads", broken.workloads)
    measure = Measurement(CPU, lambda run: 1.0, rotated_bytes=1)
    assert measure(RULE, (8,), A) == [1.0]
    with pytest.raises(CannotRun, match=why):
        measure(RULE, (8,), B)
    assert measure(RULE, (8,), C) == [1.0]


def test_an_error_of_the_gpu_is_no_property_of_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Broken(RuntimeError("CUDA error: an illegal memory access was encountered"))
    monkeypatch.setattr(tuning_workloads, "workloads", broken.workloads)
    measure = Measurement(CPU, lambda run: 1.0, rotated_bytes=1)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        measure(RULE, (8,), B)


ARGUMENTS = [
    "--heads=32",
    "--kv-heads=8",
    "--head-dim=128",
    "--hidden=4096",
    "--intermediate=14336",
]


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(ARGUMENTS) == 1
    assert "no GPU is here" in capsys.readouterr().err


def test_what_was_chosen_is_written_and_what_no_longer_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow: list[Launch] = []

    class Fake:
        """Every launch takes a second but the slow ones."""

        def __init__(self, device: torch.device) -> None:
            assert device.type == "cuda"

        def __call__(self, rule: Rule, shape: tuple[int, ...], launch: Launch) -> list[float]:
            return [2.0 if launch in slow else 1.0]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(tuning_workloads, "Measurement", Fake)
    path = file_of(tmp_path, "Some GPU", triton.__version__)

    def tuned() -> dict[launches.Key, Launch]:
        assert main([*ARGUMENTS, f"--directory={tmp_path}"]) == 0
        return read(path, "Some GPU", triton.__version__, "sm_90", RULES)

    assert tuned() == {}
    shape = (2, 2, 128, 16, 4)
    default, other, *_ = DECODE.candidates("sm_90", *shape)
    slow.append(default)
    found = tuned()
    assert found[DECODE.key("sm_90", *shape)] == other
    slow.clear()
    assert tuned() == {}
