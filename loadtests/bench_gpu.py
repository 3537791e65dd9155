"""The Triton kernels on a GPU: are they right, and how near to what it can do? `make bench-gpu`.

1. Each operation in bf16 against the reference in float64 on the same numbers.
2. What this GPU does in fact: bytes copied a second, bf16 products a second.
3. Each operation at the shapes of models that people serve: the median of many runs on inputs that
   are not in any cache, replayed as a CUDA graph, as decoding runs; its floor by the maker's
   numbers; the share it reaches of what was measured in 2, its target, and torch beside it.

Needs torch and Triton, nothing else: it may be run from a checkout on a machine without the rest.
This process never touches the GPU: it watches over the one that does (`loadtests.gpu_bench.run`),
ends it where a case hangs, starts it again where a case was its end, and prints the table. When
the time is over, cases left are skipped, and the table says so.

Exit codes: 0 all right, 1 something is wrong or failed (a target may be missed), 2 no GPU.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from loadtests.gpu_bench import results as found
from loadtests.gpu_bench.results import Results, Row, Verdict

_SECONDS = 420.0
# A case's kernels are compiled in seconds; importing torch from a cold disk may take a minute.
_SILENCE_S_MAX = 120.0
_LOOK_S = 0.25
_NO_GPU, _LOST = 2, 3  # exit codes of the measuring process
_SET_UP = ("set-up", "torch, the GPU and its ceilings")


def watch(command: Sequence[str], path: Path, silence_s_max: float) -> int:
    """Runs the measuring process until each case has its row; its last exit code.

    A case that it ends in, or is silent in for too long, has failed; the others go on.
    """
    while True:
        code, why = _one_process(command, path, silence_s_max)
        results = found.load(path)
        if code in (0, _NO_GPU):
            return code
        if results.running is not None:
            section, name = results.running
            row = Row(section=section, name=name, operation=name, shape="",
                      verdict=Verdict.FAILED, notes=why)  # fmt: skip
            results.end(row)
            print(found.line(row), flush=True)
        elif code != _LOST:
            print(f"{why}, and no case was running", file=sys.stderr)
            return code
        if not results.ceilings:  # nothing can be measured beside them
            return code


def _one_process(command: Sequence[str], path: Path, silence_s_max: float) -> tuple[int, str]:
    """Its exit code, and how it ended in words. It is killed when nothing changes for too long."""
    with subprocess.Popen(command) as process:
        try:
            heard, changed = time.monotonic(), path.stat().st_mtime_ns
            while True:
                try:
                    code = process.wait(_LOOK_S)
                    return code, f"the process ended with code {code}"
                except subprocess.TimeoutExpired:
                    pass
                if path.stat().st_mtime_ns != changed:
                    heard, changed = time.monotonic(), path.stat().st_mtime_ns
                if time.monotonic() - heard > silence_s_max:
                    process.kill()
                    return process.wait(), f"killed: nothing came for {silence_s_max:.0f} s"
        finally:
            process.kill()


def begin(path: Path, resume: bool) -> None:
    """An empty file of results; resumed, one with what was measured."""
    results = found.load(path) if resume else Results(path)
    unmeasured = (Verdict.SKIPPED, Verdict.FAILED)
    results.rows = [row for row in results.rows if row.verdict not in unmeasured]
    results.begin(*_SET_UP)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=_SECONDS,
                        help="begin no case after so many (default: %(default).0f)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="the results, after each case")
    parser.add_argument("--resume", action="store_true",
                        help="measure only what FILE has not")  # fmt: skip
    parser.add_argument("--only", default="", metavar="TEXT",
                        help="only sections whose names have this in them")  # fmt: skip
    chosen = parser.parse_args(arguments)
    until = time.time() + chosen.seconds
    # Whoever ends this from outside gets the table of what there is.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as directory:
        path = chosen.json or Path(directory) / "results.json"
        begin(path, chosen.resume)
        command = [sys.executable, "-m", "loadtests.gpu_bench.run", "--results", str(path),
                   "--until", str(until), "--only", chosen.only]  # fmt: skip
        try:
            code = watch(command, path, _SILENCE_S_MAX)
        except KeyboardInterrupt:
            code = 1
        if code == _NO_GPU:
            return _NO_GPU
        results = found.load(path)
        print(*found.table(results.rows), "", found.summary(results.rows), sep="\n", flush=True)
    return 0 if code == 0 and results.all_well() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
