"""A replica on Triton's kernels compiles before it serves, and never again.

Triton runs for a GPU that is not there: it specialises, and counts, but compiles and launches
nothing; so tokens are zeros, and it does not matter here.
"""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch

from kernels import triton_ops
from kernels.compiles import compiled_kernels, count_compiled_kernels
from replica.runner import ModelRunner, RunnerLimits
from replica.weights.load import load_model, open_source
from tests.kernels.device import INTERPRETED
from tests.kernels.fake_gpu import counted
from tests.replica.device.test_device import Again
from tests.support.stepped_engine import Engine
from tests.support.tiny_models import TINY_MODELS, save_tiny_model

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
BLOCKS = 30


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fresh count on a GPU that is none; no trace of either is left."""
    # What no kernel writes must still be a token.
    monkeypatch.setattr(torch, "empty", torch.zeros)
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)
    with counted(monkeypatch):
        count_compiled_kernels()
        yield


@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "recorded"])
@pytest.mark.parametrize(
    "shape",
    [
        "grouped-query, untied",
        "mistral, a window of 20",
        "qwen3 moe, three of eight experts, one dense layer",
    ],
)
def test_a_warm_replica_compiles_nothing(shape: str, graphs: bool, tmp_path: Path) -> None:
    save_tiny_model(tmp_path, **TINY_MODELS[shape])
    device = torch.device("cpu")
    model = load_model(open_source(tmp_path), dtype=torch.bfloat16, device=device, ops=triton_ops)
    runner = ModelRunner(
        model,
        triton_ops,
        dtype=torch.bfloat16,
        device=device,
        limits=RunnerLimits(block_size=16, max_batched_tokens=128, max_running_sequences=20),
        num_blocks=BLOCKS,
        steps_in_flight_max=2,
    )
    runner.warm_up()
    if graphs:
        runner.record_decodes(Again())
    warmed = compiled_kernels()
    assert warmed >= 9
    random = Random(0)
    engine = Engine(runner, blocks=BLOCKS, max_batched_tokens=128, max_running_sequences=20)
    for sequence_id in range(60):
        prompt = random.choices(range(512), k=random.choice((1, 2, 15, 16, 17, 40, 100, 200)))
        engine.submit(sequence_id, prompt, random.choice((1, 20, 90)))
        for _ in range(random.randrange(3)):
            engine.step()
            assert compiled_kernels() == warmed
    engine.finish()
    assert compiled_kernels() == warmed
    assert engine.scheduler.counters.preemptions > 0
