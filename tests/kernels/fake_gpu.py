"""Triton without a GPU and without compiling: it decides all it would, and launches nothing."""

import importlib
import pkgutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import triton
import triton.compiler
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from kernels import compiles, triton_ops
from kernels.triton_ops import attention_decode


class _Driver:
    """Of one sm_90."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class _Compiled:
    """A kernel that does nothing."""

    function = packed_metadata = None

    def launch_metadata(self, *arguments: Any) -> None:
        return None

    def run(self, *arguments: Any) -> None:
        pass


def jit_functions() -> dict[str, JITFunction]:
    """Every `triton.jit` function of `kernels.triton_ops`, by name."""
    modules = [
        importlib.import_module(f"{triton_ops.__name__}.{found.name}")
        for found in pkgutil.iter_modules(triton_ops.__path__)
    ]
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, JITFunction)
    }


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """`pretend`, and a fresh count of compiled kernels; no trace of either is left."""
    pretend(patch)
    patch.setattr(compiles, "_compiled", 0)
    attention_decode._scratch.cache_clear()
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.jit_post_compile_hook = None
        yield
    attention_decode._scratch.cache_clear()


def pretend(patch: pytest.MonkeyPatch) -> None:
    """Until `patch` is undone, Triton believes in a GPU, and every kernel starts uncompiled."""
    patch.setattr(triton.runtime.driver, "_active", _Driver())
    patch.setattr(triton.compiler, "compile", lambda source, **options: _Compiled())
    for function in jit_functions().values():
        patch.setattr(function, "device_caches", defaultdict(function.create_binder))
