"""Steps of a real runner are measured and fitted: with a clock that is known, to what it says."""

from pathlib import Path

import pytest
import torch

from loadtests.sim.fit import fit
from loadtests.sim.measure import errors, measure, steps
from replica.core.timing import PRESETS, work_of
from replica.load_runner import load_runner
from tests.support.tiny_models import TINY_MODELS, save_tiny_model


def test_what_a_clock_says_of_real_steps_is_found_again(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    save_tiny_model(tmp_path, layers=1, **TINY_MODELS["grouped-query, untied"])
    runner = load_runner(
        tmp_path, dtype="float32", num_blocks=40, max_batched_tokens=64, max_running_sequences=8
    )
    plans = list(
        steps(
            tokens_max=64,
            sequences_max=8,
            context_max=runner.max_model_len,
            block_size=runner.block_size,
            num_blocks=runner.num_blocks,
        )
    )
    assert all(plan.num_tokens <= 64 and len(plan.slices) <= 8 for plan in plans)
    truth = PRESETS["h100-8b"].timing
    now, seconds = 0.0, iter([truth.step_s(plan) for plan in plans for _ in range(3)])
    begun = False

    def clock() -> float:
        nonlocal now, begun
        now, begun = now + (next(seconds) if begun else 0.0), not begun
        return now

    measured = measure(runner, plans, clock)
    assert [work for work, _ in measured] == [work_of(plan) for plan in plans]
    found = fit(measured)
    assert errors(found, measured)[-1] < 1e-6
    for plan in plans:
        assert found.step_s(plan) == pytest.approx(truth.step_s(plan))
