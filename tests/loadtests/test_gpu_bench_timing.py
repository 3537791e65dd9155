"""Timing of `make bench-gpu` on a GPU that is made up: what is called, and what comes out."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from loadtests.gpu_bench import timing

CALL_S = 3e-3


class Gpu:
    """A clock that a call moves on; graphs that remember how many calls they have captured."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.capturing: Graph | None = None
        self.error: Exception | None = None
        self.called = 0

    def call(self) -> None:
        self.called += 1
        if self.capturing is None:
            self.now_s += CALL_S
        elif self.error is not None:
            raise self.error
        else:
            self.capturing.calls += 1

    @contextmanager
    def capture(self, graph: "Graph", stream: object) -> Iterator[None]:
        self.capturing = graph
        try:
            yield
        finally:
            self.capturing = None


class Graph:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.calls = gpu, 0

    def replay(self) -> None:
        self.gpu.now_s += self.calls * CALL_S / 2  # launches cost the rest


class Event:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.at_s = 0.0

    def record(self) -> None:
        self.at_s = self.gpu.now_s

    def elapsed_time(self, end: "Event") -> float:
        return (end.at_s - self.at_s) * 1e3


@contextmanager
def on_stream(_: object) -> Iterator[None]:
    yield


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    made = Gpu()
    for name, stand_in in {
        "synchronize": lambda: None,
        "Stream": object,
        "stream": on_stream,
        "CUDAGraph": lambda: Graph(made),
        "graph": made.capture,
        "Event": lambda enable_timing: Event(made),
        "empty_cache": lambda: None,
        "mem_get_info": lambda: (7, 9),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: made.now_s)
    return made


def test_a_graphs_time_is_that_of_one_run(gpu: Gpu) -> None:
    assert timing.median_s([gpu.call, gpu.call]) == (pytest.approx(CALL_S / 2), "")


def test_what_cannot_be_captured_is_launched_and_says_so(gpu: Gpu) -> None:
    gpu.error = RuntimeError("operation not permitted")
    seconds, note = timing.median_s([gpu.call])
    assert seconds == pytest.approx(CALL_S)
    assert note == "no CUDA graph (RuntimeError: operation not permitted)"


def test_what_fails_everywhere_fails(gpu: Gpu) -> None:
    def fault() -> None:
        raise RuntimeError("illegal memory access")

    with pytest.raises(RuntimeError, match="illegal"):
        timing.median_s([fault])
    assert gpu.called == 0


def test_a_sample_is_long_enough_and_not_endless(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    # 20 ms are six rounds of 3 ms: warming up seven and one, 16 samples of six.
    timing.eager_median_s([gpu.call])
    assert gpu.called == 8 + 16 * 6
    monkeypatch.setattr(timing, "_REPLAY_S", 1e9)
    gpu.called = 0
    timing.eager_median_s([gpu.call])
    assert gpu.called == 8 + 16 * 100


def test_ceilings_count_what_is_moved_and_computed(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "_COPIED_BYTES", 1000)
    monkeypatch.setattr(timing, "_MATMUL", 10)

    def one_second_each(runs: list[timing.Run]) -> float:
        for one in runs:
            one()
        return 1.0

    monkeypatch.setattr(timing, "eager_median_s", one_second_each)
    assert timing.ceilings(torch.device("cpu")) == {"memory": 2000, "arithmetic": 2000}
    assert timing.free_bytes() == 7
