"""Triton's attention is called as the reference is, and equals it under the interpreter."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import torch_ops
from kernels.triton_ops import attention_decode, attention_prefill

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["interpreted_decode.py", "interpreted_prefill.py"])
def test_it_equals_the_reference_under_the_interpreter(name: str) -> None:
    file = Path(__file__).with_name(name)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(file)],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("module", [attention_decode, attention_prefill])
def test_it_is_called_as_the_reference_is(module: object) -> None:
    (name,) = (name for name in vars(module) if name.startswith("paged_attention"))
    ours, reference = (inspect.signature(getattr(each, name)) for each in (module, torch_ops))
    assert ours == reference
