"""Greedy tokens in fp32 equal transformers', however the work is cut into steps and batches."""

from pathlib import Path
from random import Random

import pytest
import torch
from transformers import LlamaForCausalLM

from replica.load_runner import load_runner
from tests.support.tiny_models import (
    TINY_MODELS,
    Driver,
    embedded_model_path,
    reference_tokens,
    save_tiny_model,
    transformers_model_from_gguf,
)

COUNT = 64


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def random_prompt(length: int, vocabulary: int = 512) -> list[int]:
    random = Random(length)
    return [random.randrange(vocabulary) for _ in range(length)]


@pytest.fixture(scope="module", params=TINY_MODELS, ids=TINY_MODELS)
def tiny(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, LlamaForCausalLM]:
    directory = tmp_path_factory.mktemp("tiny")
    return directory, save_tiny_model(directory, **TINY_MODELS[request.param])


@pytest.fixture
def driver(tiny: tuple[Path, LlamaForCausalLM]) -> Driver:
    runner = load_runner(tiny[0], dtype="float32", block_size=8, num_blocks=400)
    for cache in runner.kv_caches:
        cache.fill_(torch.nan)  # reading what nobody wrote would show
    return Driver(runner)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 100])
def test_greedy_tokens_equal_transformers(
    tiny: tuple[Path, LlamaForCausalLM], driver: Driver, length: int
) -> None:
    prompt = random_prompt(length)
    assert driver.generate([prompt], COUNT) == [reference_tokens(tiny[1], prompt, COUNT)]


@pytest.mark.parametrize("chunk", [1, 5, 8, 33])
def test_a_prompt_in_chunks_gives_the_tokens_of_a_whole_one(driver: Driver, chunk: int) -> None:
    prompt = random_prompt(67)
    assert driver.generate([prompt], 16, chunk=chunk) == driver.generate([prompt], 16)


def test_a_batch_of_eight_gives_the_tokens_of_eight_singles(driver: Driver) -> None:
    prompts = [random_prompt(length) for length in (1, 7, 8, 9, 30, 64, 65, 200)]
    singles = [driver.generate([prompt], 16)[0] for prompt in prompts]
    assert driver.generate(prompts, 16) == singles
    assert driver.generate(prompts, 16, chunk=19) == singles  # prefills and decodes together


@pytest.mark.parametrize("cached_blocks", [1, 6])
def test_a_cached_prefix_gives_the_tokens_of_no_cache(driver: Driver, cached_blocks: int) -> None:
    block_size = driver.runner.block_size
    prefix = random_prompt(6 * block_size)
    first = driver.new_table(len(prefix) + 20)
    driver.generate([prefix], 4, tables=[first])
    prompts = [[*prefix, *random_prompt(length)] for length in (3, 17)]
    shared = first[:cached_blocks]
    tables = [driver.new_table(len(prompt) + 16, shared) for prompt in prompts]
    warm = driver.generate(prompts, 16, tables=tables, cached=cached_blocks * block_size)
    assert warm == driver.generate(prompts, 16)


@pytest.fixture(scope="module")
def embedded_path() -> Path:
    return embedded_model_path()


@pytest.fixture(scope="module")
def embedded_reference(embedded_path: Path) -> LlamaForCausalLM:
    torch.set_num_threads(1)
    return transformers_model_from_gguf(embedded_path)


def test_the_embedded_gguf_gives_transformers_tokens(
    embedded_path: Path, embedded_reference: LlamaForCausalLM
) -> None:
    runner = load_runner(embedded_path, dtype="float32", num_blocks=40, max_model_len=512)
    prompts = [random_prompt(40, 49152), random_prompt(3, 49152)]
    expected = [reference_tokens(embedded_reference, prompt, COUNT) for prompt in prompts]
    assert Driver(runner).generate(prompts, COUNT) == expected
