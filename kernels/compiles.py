"""How many kernels Triton has compiled in this process: in steady state the number stands still.

Each variant of a kernel counts once, whether it was compiled or came from Triton's cache on disk:
either holds up the step that first needs it. Triton tells through `jit_post_compile_hook`
(`triton/runtime/jit.py`, `JITFunction._do_compile`, versions 3.6 to 3.9).
"""

import importlib
import importlib.util
from typing import Any

_compiled = 0


def count_compiled_kernels() -> None:
    """Counts from now on. A hook that someone has set before is still called.

    Calling it again changes nothing. Without Triton, and in its interpreter, nothing is compiled
    and the count stays 0.
    """
    if importlib.util.find_spec("triton") is None:
        return
    runtime = importlib.import_module("triton").knobs.runtime
    if not isinstance(runtime.jit_post_compile_hook, _Counting):
        runtime.jit_post_compile_hook = _Counting(runtime.jit_post_compile_hook)


def compiled_kernels() -> int:
    """Kernels compiled, or loaded from disk, since `count_compiled_kernels`."""
    return _compiled


class _Counting:
    """A hook that counts, then does what the one before it did."""

    def __init__(self, before: Any) -> None:
        self._before = before

    def __call__(self, **told: Any) -> Any:
        global _compiled
        _compiled += 1
        return self._before(**told) if self._before is not None else None
