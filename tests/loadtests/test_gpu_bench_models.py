"""Whole models in `make bench-gpu`, tiny and on the CPU: each measurement makes its row."""

import sys

import pytest
import torch

from kernels import torch_ops
from loadtests.gpu_bench import end_to_end
from loadtests.gpu_bench.measure import Bench, Unmeasurable
from loadtests.gpu_bench.models import (
    LLAMA_1B,
    LLAMA_8B,
    QWEN_30B,
    NamedModel,
    decode_work,
)
from loadtests.gpu_bench.sizes import FULL, TINY
from replica.models.registry import architecture

BENCH = Bench(
    torch.device("cpu"),
    torch_ops,
    lambda _: (1.0, ""),
    lambda: 1e12,
    {"memory": 1e10, "arithmetic": 1e11},
)


def test_every_measurement_makes_its_row() -> None:
    torch.set_num_threads(1)
    rows = []
    for one in end_to_end.measurements(TINY.whole_models):
        if isinstance(one, end_to_end.BetweenSteps):
            with pytest.raises(Unmeasurable, match="no steps are recorded here"):
                one.run(BENCH, "whole models")
            continue
        rows.append(one.run(BENCH, "whole models"))
        assert rows[-1].name == one.name
    assert [(row.operation, row.target) for row in rows] == [
        ("tiny, decode", "≥ 85%"),
        ("tiny, decode", ""),
        ("tiny, first token", ""),
        ("tiny, first token", ""),
        ("tiny, a token", "≥ 24 times"),
    ]
    assert all(row.us for row in rows)
    assert rows[-1].rival == "transformers, one at a time"
    assert "transformers with 2 at once" in rows[-1].notes


def test_without_the_engines_requirements_the_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "loadtests.gpu_bench.served", None)
    first = next(iter(end_to_end.measurements(TINY.whole_models)))
    with pytest.raises(Unmeasurable, match="of torch and Triton alone there is no engine"):
        first.run(BENCH, "whole models")


def test_sequences_that_do_not_fit_are_not_measured() -> None:
    model = TINY.whole_models.models[0]
    step = end_to_end.DecodeStep(end_to_end.Host(TINY.whole_models), model, 30)
    with pytest.raises(Unmeasurable, match="blocks needed, 64 fit"):
        step.run(BENCH, "whole models")


@pytest.mark.parametrize(
    ("model", "billions"), [(LLAMA_1B, 1.24), (LLAMA_8B, 8.03), (QWEN_30B, 30.5)], ids=str
)
def test_models_are_as_large_as_they_are_called(model: NamedModel, billions: float) -> None:
    shapes = architecture(model.config.architecture).tensor_shapes(model.config)
    count = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert count / 1e9 == pytest.approx(billions, rel=0.01)


def test_a_step_of_one_moves_the_weights_that_it_uses() -> None:
    whole = decode_work(LLAMA_8B.config, [1]).bytes
    embedding = LLAMA_8B.config.vocab_size * LLAMA_8B.config.hidden_size * 2
    assert whole == pytest.approx(8.03e9 * 2 - embedding, rel=0.01)
    # 3.3 billion weights of 30.5 are active, 0.3 of them in the embedding.
    assert decode_work(QWEN_30B.config, [1]).bytes == pytest.approx(3.05e9 * 2, rel=0.02)
    many = decode_work(QWEN_30B.config, [1] * 256).bytes
    assert many == pytest.approx(30.2e9 * 2, rel=0.02)


def test_all_of_them_are_measured() -> None:
    rows = list(end_to_end.measurements(FULL.whole_models))
    assert len({one.name for one in rows}) == len(rows) == 3 * 9
