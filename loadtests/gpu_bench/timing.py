"""How long calls take on a GPU, and what this GPU does at best: bytes copied, bf16 products."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from loadtests.gpu_bench.case import Run
from loadtests.gpu_bench.results import one_line

_WARM_S = 0.02
_REPLAY_S = 0.02  # of one sample
_SAMPLES = 15
_REPEATS_MAX = 100
_COPIED_BYTES = 2**30
_MATMUL = 8192


def median_s(runs: Sequence[Run]) -> tuple[float, str]:
    """Of one of the runs, which are called one after the other, and what must be said about it.

    They are replayed as a CUDA graph, as decoding runs. What cannot be captured is launched from
    the host, and the note says so: then launches may be what was timed.
    """
    try:
        return graph_median_s(runs), ""
    except RuntimeError as error:
        torch.cuda.synchronize()  # raises again if it is the GPU that is lost
        return eager_median_s(runs), f"no CUDA graph ({one_line(error)})"


def graph_median_s(runs: Sequence[Run]) -> float:
    """Raises: RuntimeError: it cannot be captured."""
    torch.cuda.synchronize()  # their arguments were made on another stream
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        repeats = _repeats(runs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(repeats):
                _call(runs)
        found = _samples_s(graph.replay)
    torch.cuda.synchronize()
    return statistics.median(found) / repeats / len(runs)


def eager_median_s(runs: Sequence[Run]) -> float:
    torch.cuda.synchronize()
    repeats = _repeats(runs)

    def all_of_them() -> None:
        for _ in range(repeats):
            _call(runs)

    return statistics.median(_samples_s(all_of_them)) / repeats / len(runs)


def _call(runs: Sequence[Run]) -> None:
    for run in runs:
        run()


def _repeats(runs: Sequence[Run]) -> int:
    """So many rounds make one sample; compiles and warms up on the way."""
    _call(runs)
    torch.cuda.synchronize()
    rounds, start = 0, time.perf_counter()
    while rounds == 0 or time.perf_counter() - start < _WARM_S:
        _call(runs)
        torch.cuda.synchronize()
        rounds += 1
    round_s = (time.perf_counter() - start) / rounds
    return max(1, min(_REPEATS_MAX, int(_REPLAY_S / round_s)))


def _samples_s(sample: Callable[[], None]) -> list[float]:
    found = []
    for _ in range(_SAMPLES + 1):
        begin, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        begin.record()
        sample()
        end.record()
        torch.cuda.synchronize()
        found.append(begin.elapsed_time(end) / 1e3)
    return found[1:]  # the first replay also uploads the graph


def ceilings(device: torch.device) -> dict[str, float]:
    """Bytes a second that a copy moves, both ways together, and bf16 operations a second."""
    source = torch.zeros(_COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = eager_median_s([lambda: target.copy_(source)])
    left, right = (
        torch.randn(_MATMUL, _MATMUL, dtype=torch.bfloat16, device=device) for _ in range(2)
    )
    matmul_s = eager_median_s([lambda: left @ right])
    return {"memory": 2 * _COPIED_BYTES / copy_s, "arithmetic": 2 * _MATMUL**3 / matmul_s}


def free_bytes() -> int:
    """Of the GPU's memory, when nothing is kept that could be given back."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]
