"""Where Triton kernels run in tests: on a GPU, or in the interpreter as `test_interpreter` does."""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
needs_a_device = pytest.mark.skipif(
    DEVICE == "cpu" and not INTERPRETED, reason="test_interpreter runs this"
)
needs_the_interpreter = pytest.mark.skipif(not INTERPRETED, reason="test_interpreter runs this")
