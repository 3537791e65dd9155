"""A replica on Triton's kernels says what one on torch's says, cached or preempted as may be.

It needs a GPU or, as `test_interpreter` arranges, TRITON_INTERPRET=1.
"""

from pathlib import Path
from random import Random

import pytest
import torch

from kernels.triton_ops import attention_decode, attention_items, attention_prefill
from replica.core.plan import SamplingParams
from replica.runner import ModelRunner
from tests.kernels.device import DEVICE, INTERPRETED, needs_a_device
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
        let_ranges_take_tensors(attention_decode, attention_items, attention_prefill)


def prompt(length: int) -> list[int]:
    random = Random(length)
    return [random.randrange(512) for _ in range(length)]


def load(directory: Path, backend: str, blocks: int) -> ModelRunner:
    runner = ModelRunner.load(
        directory,
        dtype="float32",
        device=DEVICE if backend == "triton" else "cpu",
        backend=backend,
        block_size=BLOCK_SIZE,
        num_blocks=blocks,
    )
    for cache in runner.kv_caches:
        cache.fill_(torch.nan)  # reading what nobody wrote would show
    return runner


def driver(directory: Path, backend: str) -> Driver:
    return Driver(load(directory, backend, 60))


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


def test_a_cached_prefix_and_sampling_give_what_torch_gives(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, layers=LAYERS, **TINY_MODELS["grouped-query, untied"])
    said = []
    for backend in ("triton", "torch"):
        drive = driver(tmp_path, backend)
        prefix = prompt(2 * BLOCK_SIZE)
        table = drive.new_table(len(prefix) + COUNT)
        drive.generate([prefix], 1, tables=[table])
        later = [*prefix, *prompt(5)]
        tables = [drive.new_table(len(later) + COUNT, table[:2])]
        sampling = [SamplingParams(temperature=0.7, top_k=20, top_p=0.9, seed=3)]
        said.append(
            drive.generate([later], COUNT, tables=tables, cached=len(prefix), sampling=sampling)
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
