"""Runs the tests of Triton kernels without a GPU, in Triton's interpreter.

Triton decides when it is first imported whether it compiles or interprets, so that the tests need
a process of their own: one for all of them, since each would import torch and transformers anew.
"""

import os
import subprocess
import sys
from pathlib import Path

FILES = sorted(Path(__file__).parent.glob("test_triton_*.py"))


def test_kernels_pass_their_tests_in_the_interpreter() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, FILES)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "skipped" not in ran.stdout.splitlines()[-1]
