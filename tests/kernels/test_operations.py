"""The backend is the one that was asked for, or there is none."""

import importlib.util

import pytest
import torch

from kernels import torch_ops
from kernels.operations import BACKENDS, BackendUnavailable, operations

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def test_torch_runs_everywhere() -> None:
    assert operations("torch", CPU) is torch_ops
    assert operations("torch", GPU) is torch_ops


@pytest.mark.parametrize(
    ("backend", "installed", "interpreted", "message"),
    [
        ("cuda", True, True, "no backend 'cuda'; there are torch, triton"),
        ("triton", False, True, "triton is not installed"),
        ("triton", True, False, "needs a GPU; device is cpu"),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(
    backend: str,
    installed: bool,
    interpreted: bool,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed or None)
    monkeypatch.setenv("TRITON_INTERPRET", "1" if interpreted else "0")
    with pytest.raises(BackendUnavailable, match=message):
        operations(backend, CPU)


def test_every_backend_is_a_package_of_operations() -> None:
    for backend in BACKENDS:
        assert importlib.util.find_spec(f"kernels.{backend}_ops") is not None
