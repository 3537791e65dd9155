"""A replica on Triton's kernels says what one on torch's says: prefill, decode, cached prefix.

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
from tests.support.tiny_models import TINY_MODELS, Driver, save_tiny_model

pytestmark = needs_a_device
BLOCK_SIZE = 16
COUNT = 4


@pytest.fixture(autouse=True)
def interpreter() -> None:
    torch.set_num_threads(1)
    if INTERPRETED:
        let_ranges_take_tensors(attention_decode, attention_items, attention_prefill)


def prompt(length: int) -> list[int]:
    random = Random(length)
    return [random.randrange(512) for _ in range(length)]


def driver(directory: Path, backend: str, kv_cache_dtype: str = "auto") -> Driver:
    device = DEVICE if backend == "triton" else "cpu"
    runner = ModelRunner.load(
        directory,
        dtype="float32",
        device=device,
        backend=backend,
        block_size=BLOCK_SIZE,
        num_blocks=60,
        kv_cache_dtype=kv_cache_dtype,
    )
    return Driver(runner)


@pytest.mark.parametrize(
    "shape",
    [
        "grouped-query, untied",
        "mistral, a window of 20",
        "qwen3 moe, three of eight experts, one dense layer",
    ],
)
def test_greedy_tokens_equal_those_of_torch(shape: str, tmp_path: Path) -> None:
    save_tiny_model(tmp_path, **TINY_MODELS[shape])
    ours, reference = driver(tmp_path, "triton"), driver(tmp_path, "torch")
    prompts = [prompt(length) for length in (2, 16, 29)]
    expected = reference.generate(prompts, COUNT)
    # In chunks: prefills and decodes in one step.
    assert ours.generate(prompts, COUNT, chunk=17) == expected


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
def test_a_cached_prefix_and_sampling_give_what_torch_gives(
    kv_cache_dtype: str, tmp_path: Path
) -> None:
    save_tiny_model(tmp_path, **TINY_MODELS["grouped-query, untied"])
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
