"""A replica on Triton's kernels says what one on torch's says, cached or preempted as may be.

It needs a GPU or, as `test_interpreter` arranges, TRITON_INTERPRET=1.
"""

import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from kernels.triton_ops import (
    attention_decode,
    attention_items,
    attention_prefill,
    attention_prefill_splits,
)
from replica.core.plan import SamplingParams
from replica.load_runner import load_runner
from replica.runner import ModelRunner
from tests.kernels.device import DEVICE, INTERPRETED, needs_a_device, needs_the_interpreter
from tests.kernels.paged_cases import let_ranges_take_tensors
from tests.support.stepped_engine import Engine
from tests.support.tiny_models import TINY_MODELS, Driver, save_tiny_model

pytestmark = needs_a_device
BLOCK_SIZE = 16
COUNT = 4
LAYERS = 2  # the second reads what the first wrote


@pytest.fixture(autouse=True)
def interpreter() -> None:
    torch.set_num_threads(1)
    if INTERPRETED:
        let_ranges_take_tensors(
            attention_decode, attention_items, attention_prefill, attention_prefill_splits
        )


def prompt(length: int) -> list[int]:
    random = Random(length)
    return [random.randrange(512) for _ in range(length)]


def load(
    directory: Path,
    backend: str,
    blocks: int,
    max_running_sequences: int = 64,
    kv_cache_dtype: str = "auto",
) -> ModelRunner:
    runner = load_runner(
        directory,
        dtype="float32",
        device=DEVICE if backend == "triton" else "cpu",
        backend=backend,
        block_size=BLOCK_SIZE,
        num_blocks=blocks,
        kv_cache_dtype=kv_cache_dtype,
        max_running_sequences=max_running_sequences,
    )
    for cache in runner.kv_caches:
        cache.fill_(torch.nan)  # reading what nobody wrote would show
    return runner


def driver(directory: Path, backend: str, kv_cache_dtype: str = "auto") -> Driver:
    return Driver(load(directory, backend, 60, kv_cache_dtype=kv_cache_dtype))


@pytest.mark.parametrize(
    "shape",
    [
        "grouped-query, untied",
        "mistral, a window of 20",
        "qwen3 moe, three of eight experts, one dense layer",
    ],
)
def test_greedy_tokens_equal_those_of_torch(shape: str, tmp_path: Path) -> None:
    save_tiny_model(tmp_path, layers=LAYERS, **TINY_MODELS[shape])
    ours, reference = driver(tmp_path, "triton"), driver(tmp_path, "torch")
    prompts = [prompt(length) for length in (2, 16, 29)]
    expected = reference.generate(prompts, COUNT)
    # In chunks: prefills and decodes in one step.
    assert ours.generate(prompts, COUNT, chunk=17) == expected


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
def test_a_cached_prefix_and_sampling_give_what_torch_gives(
    kv_cache_dtype: str, tmp_path: Path
) -> None:
    save_tiny_model(tmp_path, layers=LAYERS, **TINY_MODELS["grouped-query, untied"])
    said = []
    for backend in ("triton", "torch"):
        drive = driver(tmp_path, backend, kv_cache_dtype)
        prefix = prompt(2 * BLOCK_SIZE)
        table = drive.new_table(len(prefix) + 1)
        drive.generate([prefix], 1, tables=[table])
        later = [*prefix, *prompt(5)]
        tables = [drive.new_table(len(later) + 2, table[:2])]
        sampling = [SamplingParams(temperature=0.7, top_k=20, top_p=0.9, seed=3)]
        said.append(
            drive.generate([later], 2, tables=tables, cached=len(prefix), sampling=sampling)
        )
    assert said[0] == said[1]


def test_preempted_sequences_say_what_they_say_where_there_is_room(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, layers=LAYERS, **TINY_MODELS["grouped-query, untied"])
    prompts = [prompt(length) for length in (15, 16)]
    ample = Engine(load(tmp_path, "torch", 20), blocks=20).run(prompts, COUNT)
    # Each grows to two blocks; the second prompt comes in chunks, beside the first one's decode.
    runner = load(tmp_path, "triton", 3)
    engine = Engine(runner, blocks=3, max_batched_tokens=20, prefix_cache=False)
    assert engine.run(prompts, COUNT) == ample
    assert engine.scheduler.counters.preemptions > 0
    assert engine.scheduler.counters.recomputed_tokens > 0


class _AsksNothing(TorchFunctionMode):
    """No tensor's content is looked at by the host, as none may be while a graph is recorded."""

    _ASKING = ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__index__")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asks = getattr(func, "__name__", "") in self._ASKING
        # The interpreter itself computes on the host.
        files = {frame.filename for frame in traceback.extract_stack()} if asks else set()
        assert not asks or any("triton/runtime/interpreter" in file for file in files), func
        return func(*args, **(kwargs or {}))


class _Again:
    """Records by keeping the work itself."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        with _AsksNothing():
            run()
        return run


@needs_the_interpreter
@pytest.mark.parametrize(
    "shape", ["grouped-query, untied", "qwen3 moe, three of eight experts, one dense layer"]
)
def test_recorded_decodes_started_ahead_say_what_torch_says(shape: str, tmp_path: Path) -> None:
    save_tiny_model(tmp_path, layers=LAYERS, **TINY_MODELS[shape])
    prompts = [prompt(length) for length in (2, 16, 15)]
    expected = Engine(load(tmp_path, "torch", 20), blocks=20).run(prompts, COUNT)
    runner = load(tmp_path, "triton", 20, max_running_sequences=4)
    runner.record_decodes(_Again())
    runner.steps_in_flight_max = 2
    # Three sequences: each step of decodes is padded to four.
    assert Engine(runner, blocks=20).run(prompts, COUNT) == expected


@needs_the_interpreter
def test_what_asks_the_device_cannot_be_recorded(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, layers=1, **TINY_MODELS["grouped-query, untied"])
    with pytest.raises(AssertionError, match="tolist"):
        load(tmp_path, "torch", 4, max_running_sequences=1).record_decodes(_Again())
