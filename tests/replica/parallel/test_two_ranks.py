"""Two ranks say, token for token, what one process says: the model divided, gloo between them."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import torch
import torch.distributed

from replica.core.plan import SamplingParams, StepPlan, StepResult
from replica.parallel.followers import Followers
from replica.parallel.group import GroupShard, open_store
from replica.parallel.runner import ParallelRunner
from tests.support.fake_engine import make_config
from tests.support.successive_models import (
    BLOCK_SIZE,
    NEXT_MODEL,
    NUM_BLOCKS,
    SuccessiveModels,
    load_one,
)
from tests.support.tiny_models import TINY_MODELS, Driver, save_tiny_model

COUNT = 12
MIXTRAL = TINY_MODELS["mixtral, two of four experts"]
MODELS: dict[str, dict[str, object]] = {
    # An odd vocabulary: the ranks' logits overlap.
    "llama": {**TINY_MODELS["grouped-query, untied"], "vocabulary": 511},
    "llama, tied, biases": {**TINY_MODELS["multi-head, tied, biases"], "vocabulary": 509},
    "mixtral, three experts": {**MIXTRAL, "num_local_experts": 3},
    "qwen2": TINY_MODELS["qwen2, a window of 9 from its second layer on"],
    "qwen3": TINY_MODELS["qwen3, own head_dim"],
    "qwen3 moe": TINY_MODELS["qwen3 moe, three of eight experts, one dense layer"],
}
SAMPLED = SamplingParams(temperature=1.1, top_p=0.95, top_k=200, seed=2**63 + 5)


@dataclass
class Pair:
    """Rank 0 and its follower, as a runner that `Driver` can drive."""

    runner: ParallelRunner
    local: SuccessiveModels
    block_size: int = BLOCK_SIZE
    num_blocks: int = NUM_BLOCKS

    def turn_to(self, name: str) -> None:
        while self.local.order[0] != name:
            self.runner.start(NEXT_MODEL)

    def run(self, plan: StepPlan) -> StepResult:
        return self.runner.start(plan).result()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    for name, shape in MODELS.items():
        save_tiny_model(folder / name, **shape)
    return folder


@pytest.fixture(scope="module")
def pair(folder: Path) -> Iterator[Pair]:
    config = make_config(
        model={"path": str(folder), "dtype": "float32"}, engine={"tensor_parallel": 2}
    )
    store = open_store(2)
    ended: list[str] = []
    followers = Followers(
        config,
        store.port,
        command=(sys.executable, "-m", "tests.support.successive_models"),
        on_end=ended.append,
    )
    try:
        followers.minimum(0)
        shard = GroupShard(
            store, rank=0, size=2, device=torch.device("cpu"), minimum=followers.minimum
        )
        local = SuccessiveModels(folder, "float32", shard)
        yield Pair(ParallelRunner(local, followers), local)
        assert not ended
    finally:
        followers.close()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@dataclass
class Both:
    """Two ranks and one process with the same model."""

    pair: Pair
    ranks: Driver
    alone: Driver


@pytest.fixture(scope="module", params=MODELS, ids=MODELS)
def both(request: pytest.FixtureRequest, folder: Path, pair: Pair) -> Both:
    pair.turn_to(request.param)
    return Both(pair, Driver(pair), Driver(load_one(folder / request.param)))  # type: ignore[arg-type]


def prompts(*lengths: int) -> list[list[int]]:
    return [Random(length).choices(range(509), k=length) for length in lengths]


def test_a_batch_of_prompts_is_answered_alike(both: Both) -> None:
    batch = prompts(1, 8, 9, 60)
    assert both.ranks.generate(batch, COUNT) == both.alone.generate(batch, COUNT)


def test_chunks_mixed_with_decodes_and_sampling_are_answered_alike(both: Both) -> None:
    batch = prompts(3, 30, 41)
    sampling = [SAMPLED, SamplingParams(temperature=0.0), SamplingParams(temperature=0.7, seed=3)]
    ranks, alone = (
        driver.generate(batch, COUNT, chunk=11, sampling=sampling)
        for driver in (both.ranks, both.alone)
    )
    assert ranks == alone


def test_a_cached_prefix_is_found_on_every_rank(both: Both) -> None:
    prefix, rest = prompts(4 * BLOCK_SIZE, 7)
    answers = []
    for driver in (both.ranks, both.alone):
        table = driver.new_table(len(prefix) + COUNT)
        driver.generate([prefix], 4, tables=[table])
        shared = driver.new_table(len(prefix) + len(rest) + COUNT, table[:4])
        answers.append(
            driver.generate([prefix + rest], COUNT, tables=[shared], cached=4 * BLOCK_SIZE)
        )
    assert answers[0] == answers[1]
    assert answers[0] == both.alone.generate([prefix + rest], COUNT)


def unseen(driver: Driver, sampling: SamplingParams, batch: Sequence[list[int]]) -> list[list[int]]:
    """COUNT tokens after each prompt, every step planned before the one before it was seen."""
    runner = driver.runner
    first = [
        driver.slice(prompt, 0, driver.new_table(len(prompt) + COUNT), sampling) for prompt in batch
    ]
    steps = [runner.run(StepPlan(slices=first))]
    for done in range(COUNT - 1):
        slices = [
            type(one)(
                sequence_id=one.sequence_id,
                token_ids=[],
                start=len(prompt) + done,
                block_table=one.block_table,
                sampling=sampling,
            )
            for one, prompt in zip(first, batch, strict=True)
        ]
        steps.append(runner.run(StepPlan(slices=slices)))
    return [[step.sampled[row] for step in steps] for row in range(len(batch))]  # type: ignore[misc]


@pytest.mark.parametrize("sampling", [SamplingParams(temperature=0.0), SAMPLED], ids=str)
def test_ranks_sample_the_same_tokens_without_being_told_them(
    both: Both, sampling: SamplingParams
) -> None:
    batch = prompts(5, 20)
    told = both.alone.generate(batch, COUNT, sampling=[sampling] * 2)
    assert unseen(both.ranks, sampling, batch) == told


def test_a_rank_holds_its_heads_and_its_part_of_the_weights_only(both: Both) -> None:
    mine, whole = both.pair.local.now, both.alone.runner
    assert 2 * mine.kv_cache_bytes_per_block == whole.kv_cache_bytes_per_block
    assert 2 * sum(one.nbytes for one in mine.kv_caches) == sum(
        one.nbytes for one in whole.kv_caches
    )
    layers = zip(mine._model._layers, whole._model._layers, strict=True)  # type: ignore[attr-defined]
    for ours, all_of_it in layers:
        assert 2 * ours.qkv.out_features == all_of_it.qkv.out_features
        assert 2 * ours.output.in_features == all_of_it.output.in_features
