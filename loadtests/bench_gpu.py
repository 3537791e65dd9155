"""The Triton kernels on a GPU: are they right, and how near to what it can do? `make bench-gpu`.

1. Each operation in bf16 against the reference in float64 on the same numbers.
2. What this GPU does in fact: bytes copied a second, bf16 products a second.
3. Each operation at the shapes of models that people serve: the median of many runs on inputs that
   are not in any cache, replayed as a CUDA graph, as decoding runs; its floor by the maker's
   numbers; and the share it reaches of what was measured in 2.

Needs torch and Triton, nothing else: it may be run from a checkout on a machine without the rest.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
import triton.testing

from kernels import torch_ops, triton_ops
from kernels.floors import H100
from loadtests.gpu_bench.cases import Arguments, Case, large, small

_TOLERANCE = 2e-2  # of the largest number in the result: bf16 has 8 bits
_ROTATED_BYTES = 512 * 2**20  # more than any GPU's last cache holds
_ROTATIONS_MAX = 16
_COPIED_BYTES = 2**30
_MATMUL = 8192


def differences(case: Case, device: torch.device) -> float:
    """The largest error of its result, and of what it changes, as a share of the largest number."""
    torch.manual_seed(0)
    ours = case.make(torch.bfloat16, device)
    exact = {name: _wide(one) for name, one in ours.items()}
    found, expected = case.call(triton_ops, ours), case.call(torch_ops, exact)
    pairs = list(zip(_tensors(found), _tensors(expected), strict=True))
    pairs += [(ours[name], exact[name]) for name in case.changed]
    return max(
        float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-9)) for a, b in pairs
    )


def _wide(one: Any) -> Any:
    is_wide = isinstance(one, torch.Tensor) and one.dtype == torch.bfloat16
    return one.double() if is_wide else one.clone() if isinstance(one, torch.Tensor) else one


def _tensors(found: Any) -> Sequence[torch.Tensor]:
    return found if isinstance(found, tuple) else (found,)


def median_s(run: Callable[[Arguments], Any], made: Sequence[Arguments]) -> float:
    """Of a call of `run`, with each of the arguments in turn."""

    def all_of_them() -> None:
        for arguments in made:
            run(arguments)

    milliseconds = triton.testing.do_bench_cudagraph(all_of_them, return_mode="median")
    return float(milliseconds) / 1e3 / len(made)


def ceilings(device: torch.device) -> dict[str, float]:
    """Bytes a second that a copy moves, both ways together, and bf16 operations a second."""
    source = torch.empty(_COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_ms = triton.testing.do_bench(lambda: target.copy_(source), return_mode="median")
    left = torch.randn(_MATMUL, _MATMUL, device=device).to(torch.bfloat16)
    matmul_ms = triton.testing.do_bench(lambda: left @ left, return_mode="median")
    return {
        "memory": 2 * _COPIED_BYTES / (copy_ms / 1e3),
        "arithmetic": 2 * _MATMUL**3 / (matmul_ms / 1e3),
    }


def measure(case: Case, device: torch.device, ceiling: dict[str, float]) -> dict[str, Any]:
    """Its row of the table."""
    copies = min(_ROTATIONS_MAX, max(1, int(_ROTATED_BYTES / case.work.bytes)))
    made = [case.make(torch.bfloat16, device) for _ in range(copies)]
    seconds = median_s(lambda arguments: case.call(triton_ops, arguments), made)
    rival_s = None
    if case.rival is not None:
        rival = case.rival
        rival_s = median_s(lambda arguments: rival(**arguments), made)
    done = case.work.bytes if case.bound == "memory" else case.work.operations
    return {
        "operation": case.operation,
        "shape": case.shape,
        "us": seconds * 1e6,
        "floor_us": H100.floor_s(case.work) * 1e6,
        "share": done / seconds / ceiling[case.bound],
        "bound": case.bound,
        "torch_us": None if rival_s is None else rival_s * 1e6,
    }


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The table, in Markdown."""
    told = ["| operation | shape | µs | floor, µs | of what was measured | torch, µs |",
            "|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        rival = "" if row["torch_us"] is None else f"{row['torch_us']:,.1f}"
        told.append(
            f"| {row['operation']} | {row['shape']} | {row['us']:,.1f} | {row['floor_us']:,.1f}"
            f" | {row['share']:.0%} of {row['bound']} | {rival} |"
        )
    return told


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no GPU is here: nothing was measured", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    name = torch.cuda.get_device_name(device)
    wrong = 0
    for case in small():
        error = differences(case, device)
        wrong += error > _TOLERANCE
        told = "WRONG" if error > _TOLERANCE else "right"
        print(f"{told}: {case.operation}, {case.shape}: off by {error:.2e}", flush=True)
    ceiling = ceilings(device)
    print(f"{name}, torch {torch.__version__}, Triton {triton.__version__}: a copy moves"
          f" {ceiling['memory'] / 1e12:.2f} TB/s, a bf16 product does"
          f" {ceiling['arithmetic'] / 1e12:.0f} TFLOP/s", flush=True)  # fmt: skip
    rows = []
    for case in large():
        rows.append(measure(case, device, ceiling))
        torch.cuda.empty_cache()
    print(*lines(rows), sep="\n")
    if chosen.json is not None:
        results = {"gpu": name, "torch": torch.__version__, "triton": triton.__version__,
                   "ceilings": ceiling, "wrong": wrong, "rows": rows}  # fmt: skip
        chosen.json.write_text(json.dumps(results, indent=2) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
