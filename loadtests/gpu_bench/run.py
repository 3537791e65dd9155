"""The process that measures: every case of every section, a row on disk after each.

`loadtests.bench_gpu` starts it, and starts it again where a case has cost it the GPU: a fault in a
kernel leaves a process without one.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import triton

from kernels import triton_ops
from loadtests.gpu_bench import results as found
from loadtests.gpu_bench import timing
from loadtests.gpu_bench.measure import Bench, Unmeasurable
from loadtests.gpu_bench.results import Results, Row, Verdict, one_line
from loadtests.gpu_bench.sections import Section, sections
from loadtests.gpu_bench.sizes import FULL
from loadtests.provenance import commit

_DEVICE = "cuda"
NO_GPU, LOST = 2, 3  # exit codes; LOST: a case failed, and the GPU does not answer any more


class GpuLost(RuntimeError):
    """Nothing runs on the GPU any more, in this process."""


def measure_all(
    results: Results,
    bench: Bench,
    chosen: Sequence[Section],
    left_s: Callable[[], float],
    check_gpu: Callable[[], None],
) -> None:
    """A row for each case that has none yet: when no time is left, that it was skipped.

    Raises:
        GpuLost: the rest needs another process; the case that failed has its row.
    """
    known = results.known()
    for section in chosen:
        for one in section.measurements:
            if (section.name, one.name) in known:
                continue
            if left_s() <= 0:
                results.end(_unmeasured(section, one.name, Verdict.SKIPPED, "no time left"))
                continue
            results.begin(section.name, one.name)
            try:
                row = one.run(bench, section.name)
            except Unmeasurable as error:
                row = _unmeasured(section, one.name, Verdict.SKIPPED, str(error))
            except Exception as error:  # noqa: BLE001 (a case that fails must not cost the others)
                row = _unmeasured(section, one.name, Verdict.FAILED, one_line(error))
            results.end(row)
            print(found.line(row), flush=True)
            try:
                check_gpu()
            except RuntimeError as error:
                raise GpuLost(one_line(error)) from error


def _unmeasured(section: Section, name: str, verdict: Verdict, notes: str) -> Row:
    return Row(section=section.name, name=name, operation=name, shape="", verdict=verdict,
               notes=notes)  # fmt: skip


def _check_gpu() -> None:
    """Raises: RuntimeError: it is lost, or its random numbers are since a capture that failed."""
    torch.cuda.synchronize()
    torch.randn(8, device=_DEVICE).sum().item()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="read and written")
    parser.add_argument("--until", type=float, required=True, help="time.time() of the end")
    parser.add_argument("--only", default="", help="sections whose names have this in them")
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no GPU is here: nothing was measured", file=sys.stderr)
        return NO_GPU
    device = torch.device(_DEVICE)
    results = found.load(chosen.results)
    if not results.ceilings:
        results.about = {
            "gpu": torch.cuda.get_device_name(device),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "commit": commit(),
        }
        results.ceilings = timing.ceilings(device)
        results.running = None
        results.save()
        print(about(results), flush=True)
    bench = Bench(device, triton_ops, timing.median_s, timing.free_bytes, results.ceilings)
    wanted = [section for section in sections(FULL) if chosen.only in section.name]
    try:
        measure_all(results, bench, wanted, lambda: chosen.until - time.time(), _check_gpu)
    except GpuLost as error:
        print(f"the GPU is lost to this process: {error}", file=sys.stderr)
        return LOST
    return 0


def about(results: Results) -> str:
    """What was measured on, in one line."""
    told = results.about
    return (
        f"{told['gpu']}, torch {told['torch']}, Triton {told['triton']}, {told['commit']}: a copy"
        f" moves {results.ceilings['memory'] / 1e12:.2f} TB/s, a bf16 product does"
        f" {results.ceilings['arithmetic'] / 1e12:.0f} TFLOP/s"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
