"""The runner's plan handling: order, sampling seeds, sizes; what it computes is in test_golden."""

from pathlib import Path

import pytest
import torch

from replica.core.plan import SamplingParams, StepPlan
from replica.runner import ModelRunner
from tests.support.tiny_models import TINY_MODELS, Driver, save_tiny_model


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("tiny")
    save_tiny_model(directory, **TINY_MODELS["grouped-query, untied"])
    return directory


@pytest.fixture
def driver(directory: Path) -> Driver:
    return Driver(ModelRunner.load(directory, dtype="float32", block_size=8, num_blocks=200))


def test_results_stand_in_the_plans_order(driver: Driver) -> None:
    prompts = [[5] * 9, [7], [11] * 20, [13]]
    singles = []
    for prompt in prompts:
        plan = StepPlan(slices=[driver.slice(prompt, 0, driver.new_table(len(prompt)))])
        singles += driver.runner.run(plan).sampled
    slices = [driver.slice(prompt, 0, driver.new_table(len(prompt))) for prompt in prompts]
    slices.insert(2, driver.slice([3] * 12, 0, driver.new_table(12), None))
    together = driver.runner.run(StepPlan(slices=slices)).sampled
    assert together == [*singles[:2], None, *singles[2:]]


def test_a_step_without_anything_to_sample_gives_nothing(driver: Driver) -> None:
    only_prefill = StepPlan(slices=[driver.slice([1, 2, 3], 0, driver.new_table(3), None)])
    assert driver.runner.run(only_prefill).sampled == [None]
    assert driver.runner.run(StepPlan(slices=[])).sampled == []


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_a_seed_gives_the_same_tokens_in_any_batch(driver: Driver, seed: int) -> None:
    seeded = SamplingParams(temperature=0.8, top_p=0.95, top_k=100, seed=seed)
    others = [SamplingParams(temperature=1.5, seed=9), SamplingParams(temperature=0.0)]
    alone = driver.generate([[1, 2, 3]], 24, sampling=[seeded])
    among = driver.generate([[4] * 30, [1, 2, 3], [5]], 24, sampling=[others[0], seeded, others[1]])
    assert among[1] == alone[0]


def test_seeds_differ_in_what_they_give(driver: Driver) -> None:
    params = [SamplingParams(temperature=1.0, seed=seed) for seed in range(4)]
    texts = driver.generate([[1, 2, 3]] * 4, 16, sampling=params)
    assert len({tuple(text) for text in texts}) == 4


def test_top_k_of_one_is_greedy(driver: Driver) -> None:
    one = SamplingParams(temperature=1.0, top_k=1, seed=4)
    prompt = [[8, 9, 10]]
    assert driver.generate(prompt, 12, sampling=[one]) == driver.generate(prompt, 12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_formats_run(directory: Path, dtype: str) -> None:
    runner = ModelRunner.load(directory, dtype=dtype, block_size=8, num_blocks=20)
    tokens = Driver(runner).generate([[1, 2, 3] * 7, [4]], 8, chunk=6)
    assert all(0 <= token < runner.vocab_size for text in tokens for token in text)


def test_sizes_follow_from_the_model(directory: Path) -> None:
    runner = ModelRunner.load(directory, dtype="float32", block_size=8, num_blocks=32)
    # 2 (keys, values) · 3 layers · 8 tokens · 2 kv heads · head_dim 8 · 4 bytes
    assert runner.kv_cache_bytes_per_block == 3072
    assert runner.num_blocks == 32
    # One more, for what belongs to nobody.
    assert sum(cache.nbytes for cache in runner.kv_caches) == 33 * 3072
    assert (runner.vocab_size, runner.max_model_len, runner.num_layers) == (512, 512, 3)
    with pytest.raises(ValueError, match="one of num_blocks and memory_fraction"):
        ModelRunner.load(directory)


def test_the_context_can_be_shortened_not_lengthened(directory: Path) -> None:
    short = ModelRunner.load(directory, dtype="float32", num_blocks=4, max_model_len=100)
    long = ModelRunner.load(directory, dtype="float32", num_blocks=4, max_model_len=1000)
    assert (short.max_model_len, long.max_model_len) == (100, 512)
