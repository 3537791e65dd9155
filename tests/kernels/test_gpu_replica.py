"""A replica on a real GPU says what torch says on the CPU: graphs, steps ahead, sized by memory.

Everything else about the kernels runs on a GPU, too, where there is one: `test_triton_*`.
"""

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import cast

import pytest
import torch

from kernels import torch_ops, triton_ops
from kernels.operations import Operations
from loadtests.gpu_bench.models import QWEN_30B, TINY_DENSE
from replica.device.graphs import CudaRecorder
from replica.load_runner import load_runner
from replica.models.config import ModelConfig
from replica.models.registry import Model, architecture
from replica.parallel.shard import WHOLE
from replica.runner import ModelRunner, RunnerLimits
from tests.kernels.device import INTERPRETED
from tests.support.stepped_engine import Engine
from tests.support.tiny_models import TINY_MODELS, save_tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="no GPU is here"),
]
CPU, BLOCK_SIZE, COUNT = torch.device("cpu"), 16, 40
DENSE = replace(
    TINY_DENSE.config,
    num_layers=3,
    windows=(None, 40, None),
    hidden_size=256,
    intermediate_size=352,
    head_dim=64,
    max_model_len=512,
)
_EXPERTS = QWEN_30B.config.experts
assert _EXPERTS is not None
MIXTURE = replace(
    DENSE,
    architecture="Qwen3MoeForCausalLM",
    head_norms=True,
    tied_embeddings=False,
    experts=replace(
        _EXPERTS, count=8, per_token=3, intermediate_size=96, layers=(True, True, True)
    ),
)
# Around blocks' and tiles' edges; the last two begin alike.
_PREFIX = Random(0).choices(range(100), k=100)
PROMPTS = [
    *(Random(length).choices(range(100), k=length) for length in (1, 2, 15, 16, 17, 64, 200)),
    [*_PREFIX, 3],
    _PREFIX + Random(1).choices(range(100), k=30),
]


def model_of(config: ModelConfig, dtype: torch.dtype, device: torch.device, ops: object) -> Model:
    """The same weights wherever it is."""
    built = architecture(config.architecture)
    shapes = built.tensor_shapes(config)

    def read(name: str, *, rows: range | None = None, columns: range | None = None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(sum(name.encode()))
        made = torch.randn(shapes[name], generator=generator) * 0.2
        made = made * 0.2 + 1 if name.endswith("norm.weight") else made
        return made.to(dtype=dtype, device=device)

    with torch.inference_mode():
        return built.build(config, read, device, cast(Operations, ops), {}, WHOLE)


def runner_of(config: ModelConfig, dtype: torch.dtype, *, on_gpu: bool, blocks: int) -> ModelRunner:
    device = torch.device("cuda", 0) if on_gpu else CPU
    ops = triton_ops if on_gpu else torch_ops
    return ModelRunner(
        model_of(config, dtype, device, ops),
        cast(Operations, ops),
        dtype=dtype,
        device=device,
        limits=RunnerLimits(block_size=BLOCK_SIZE, max_batched_tokens=64, max_running_sequences=9),
        num_blocks=blocks,
        steps_in_flight_max=2 if on_gpu else 1,
    )


def said(runner: ModelRunner) -> list[list[int]]:
    engine = Engine(
        runner, blocks=runner.num_blocks, max_batched_tokens=64, max_running_sequences=9
    )
    return engine.run(PROMPTS, COUNT)


@pytest.mark.parametrize("recorded", [False, True], ids=["eager", "recorded"])
@pytest.mark.parametrize("blocks", [200, 22], ids=["ample", "preempted"])
@pytest.mark.parametrize("config", [DENSE, MIXTURE], ids=["dense", "mixture"])
def test_greedy_tokens_are_those_of_torch_on_the_cpu(
    config: ModelConfig, blocks: int, recorded: bool
) -> None:
    expected = said(runner_of(config, torch.float32, on_gpu=False, blocks=200))
    runner = runner_of(config, torch.float32, on_gpu=True, blocks=blocks)
    if recorded:
        runner.record_decodes(CudaRecorder())
    for cache in runner.kv_caches:
        cache.fill_(torch.nan)  # reading what nobody wrote would show
    assert said(runner) == expected


def test_graphs_say_what_launches_one_by_one_say_in_bf16() -> None:
    one_by_one = runner_of(DENSE, torch.bfloat16, on_gpu=True, blocks=200)
    recorded = runner_of(DENSE, torch.bfloat16, on_gpu=True, blocks=200)
    recorded.record_decodes(CudaRecorder())
    assert said(recorded) == said(one_by_one)


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
def test_a_loaded_replica_is_warm_and_stays_so(kv_cache_dtype: str, tmp_path: Path) -> None:
    save_tiny_model(tmp_path, **TINY_MODELS["qwen3, own head_dim"])
    told: list[float] = []
    runner = load_runner(
        tmp_path,
        device="cuda",
        backend="triton",
        max_batched_tokens=64,
        max_running_sequences=9,
        memory_fraction=0.5,
        kv_cache_dtype=kv_cache_dtype,
        progress=lambda fraction, message: told.append(fraction),
    )
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert runner.decodes_are_recorded
    free, total = torch.cuda.mem_get_info()
    assert 0.4 < 1 - free / total < 0.6
    compiled = runner.compiled_kernels
    said(runner)
    assert runner.compiled_kernels == compiled
