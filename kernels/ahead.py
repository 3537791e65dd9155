"""Kernels compiled ahead of time, for GPUs that need not be there: what each takes of the hardware.

A module of `kernels.triton_ops` lists its kernels at the shapes that matter, in `cases`. From each
binary's own notes come registers, bytes spilled and shared memory. `python -m kernels.ahead FILE`
writes the table of all.

    NVIDIA   cubin, read by cuobjdump, which lies beside Triton's compiler
    AMD      the assembly's metadata (AMDGPU code object notes)

Sources: CUDA binary utilities 13 §2.4 (--dump-resource-usage); LLVM AMDGPUUsage, "Code object V5
metadata"; CUDA C programming guide, table of compute capabilities; AMD CDNA 3 ISA §2.4 (LDS).
"""

import importlib
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
_CUDA_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")
_AMD_FIELDS = {
    "registers": re.compile(r"\.vgpr_count:\s+(\d+)"),
    "spilled": re.compile(r"\.vgpr_spill_count:\s+(\d+)"),
}
_AMD_REGISTER_BYTES = 4
_INTRODUCTION = """# What the kernels take

Each Triton kernel at the dtypes and shapes that matter, compiled ahead of time for GPUs that need
not be there. A cell is registers of a thread / bytes spilled of a thread / bytes of shared memory
of a program. Kernels of every step may not spill. `make kernels-table` writes this file.
"""


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of GPU. `shared_bytes_max`: shared memory (LDS) that one program may have."""

    gpu: GPUTarget
    shared_bytes_max: int


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 163 * 1024),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 227 * 1024),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64 * 1024),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kernel at one class of shapes.

    Attributes:
        name: Kernel, dtype and shape, like "rms_norm bf16 4096".
        kernel: The `triton.jit` function.
        types: Of its arguments that are no constants, by name: "*bf16", "i32", "fp32".
        constants: Its constexpr arguments, by name.
        aligned: Names of arguments that are multiples of 16, as pointers from torch are.
        hot: It runs in every step: then it must not spill.
        targets: Names of those it is meant for.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 3
    hot: bool = True
    targets: tuple[str, ...] = tuple(TARGETS)


@dataclass(frozen=True, slots=True)
class Usage:
    """What one program takes. `spilled_bytes` and `registers`: of each thread."""

    registers: int
    spilled_bytes: int
    shared_bytes: int


def compile_case(case: Case, target: Target) -> Usage:
    """Compiles it to the target's machine code."""
    names = case.kernel.arg_names
    assert {*case.types, *case.constants} == set(names), f"{case.name}: every argument once"
    source = ASTSource(
        case.kernel,
        signature={name: case.types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in case.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in case.aligned},
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    compiled = triton.compile(source, target=target.gpu, options=options)
    if target.gpu.backend == "cuda":
        registers, spilled_bytes = _cuda_usage(compiled.asm["cubin"])
    else:
        registers, spilled_bytes = _amd_usage(compiled.asm["amdgcn"])
    return Usage(registers, spilled_bytes, compiled.metadata.shared)


def _cuda_usage(cubin: bytes) -> tuple[int, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_CUOBJDUMP), "--dump-resource-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = _CUDA_USAGE.search(told)
    assert found is not None, told
    return int(found[1]), int(found[2])


def _amd_usage(assembly: str) -> tuple[int, int]:
    found = {name: field.search(assembly) for name, field in _AMD_FIELDS.items()}
    registers, spilled = found["registers"], found["spilled"]
    assert registers is not None, "the metadata tells"
    assert spilled is not None, "the metadata tells"
    return int(registers[1]), int(spilled[1]) * _AMD_REGISTER_BYTES


def all_cases() -> list[Case]:
    """What every module of `kernels.triton_ops` that has `cases` lists, module by module."""
    package = importlib.import_module("kernels.triton_ops")
    modules = [
        importlib.import_module(f"{package.__name__}.{found.name}")
        for found in pkgutil.iter_modules(package.__path__)
    ]
    return [case for module in modules if hasattr(module, "cases") for case in module.cases()]


def table() -> str:
    """Compiles all cases for all their targets; what they take, as a Markdown document."""
    wanted = [(case.name, target) for case in all_cases() for target in case.targets]
    with ProcessPoolExecutor() as pool:
        usages = dict(
            zip(wanted, pool.map(_compile_named, *zip(*wanted, strict=True)), strict=True)
        )
    lines = [
        _INTRODUCTION,
        f"Triton {triton.__version__}.\n",
        "| " + " | ".join(["kernel", "warps", *TARGETS]) + " |",
        "|---|---|" + "---|" * len(TARGETS),
    ]
    for case in all_cases():
        cells = [f"`{case.name}`", str(case.num_warps)]
        for target in TARGETS:
            usage = usages.get((case.name, target))
            if usage is not None:
                cells.append(f"{usage.registers} / {usage.spilled_bytes} / {usage.shared_bytes}")
            else:
                cells.append("")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _compile_named(case: str, target: str) -> Usage:
    """In a process of its own: kernels cannot be sent to one, names can."""
    (found,) = (one for one in all_cases() if one.name == case)
    return compile_case(found, TARGETS[target])


def main() -> None:
    """Writes the table to the file that the command line names."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m kernels.ahead FILE")
    Path(sys.argv[1]).write_text(table())


if __name__ == "__main__":
    main()
