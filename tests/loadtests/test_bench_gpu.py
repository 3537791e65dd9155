"""`make bench-gpu` as far as it goes without a GPU: what is wrong is seen, the table is whole."""

import inspect
from types import SimpleNamespace

import pytest
import torch

from kernels import torch_ops
from loadtests import bench_gpu
from loadtests.gpu_bench.cases import Case, large, small

SMALL = {f"{case.operation} {case.shape}": case for case in small()}
CPU = torch.device("cpu")


@pytest.mark.parametrize("case", [*SMALL.values()], ids=[*SMALL])
def test_what_is_right_is_near_the_reference_and_what_is_not_is_seen(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(bench_gpu, "triton_ops", torch_ops)
    assert bench_gpu.differences(case, CPU) < bench_gpu._TOLERANCE
    right = getattr(torch_ops, case.operation)

    def wrong(**arguments: torch.Tensor) -> object:
        found = right(**arguments)
        first = found[0] if isinstance(found, tuple) else found
        first[-1] = first[-1] * 1.1 + 0.1  # one row
        return found

    monkeypatch.setattr(bench_gpu, "triton_ops", SimpleNamespace(**{case.operation: wrong}))
    assert bench_gpu.differences(case, CPU) > bench_gpu._TOLERANCE


@pytest.mark.parametrize("case", [*large()], ids=lambda case: f"{case.operation} {case.shape}")
def test_what_is_measured_is_an_operation_with_work_to_do(case: Case) -> None:
    assert case.work.bytes > 0
    assert case.work.operations > 0
    assert case.bound in ("memory", "arithmetic")
    wanted = inspect.signature(getattr(torch_ops, case.operation)).parameters
    of_its_kind = next(one for one in small() if one.operation == case.operation)
    assert of_its_kind.make(torch.float32, CPU).keys() <= wanted.keys()


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench_gpu.main([]) == 2
    assert "no GPU is here" in capsys.readouterr().err


def test_the_table_tells_time_floor_and_share() -> None:
    row = {
        "operation": "moe", "shape": "1 token", "us": 12.34, "floor_us": 5.0, "share": 0.405,
        "bound": "memory", "torch_us": None,
    }  # fmt: skip
    assert bench_gpu.lines([row])[-1] == "| moe | 1 token | 12.3 | 5.0 | 40% of memory |  |"
