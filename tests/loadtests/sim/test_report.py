"""What a row says of a run, by hand."""

import pytest

from loadtests.sim.report import row_of
from loadtests.sim.world import Run, Served
from replica.core.timing import PRESETS

PRESET = PRESETS["h100-8b"]


def served(
    first_s: float | None, ended_s: float | None, tokens: int, *, failed: bool = False
) -> Served:
    return Served(
        request=0,
        arrival_s=5.0,
        prompt_tokens=100,
        output_tokens=tokens,
        replica=0,
        first_token_s=first_s,
        ended_s=ended_s,
        failed=failed,
    )


def run_of(*answers: Served) -> Run:
    run = Run()
    run.served.extend(answers)
    return run


def test_tokens_after_the_first_and_whole_answers_have_their_times() -> None:
    row = row_of("any", run_of(served(1.0, 3.0, 5), served(2.0, 12.0, 11)), PRESET)
    assert row.tpot_mean_s == pytest.approx((0.5 + 1.0) / 2)
    assert row.e2e_mean_s == pytest.approx((3.0 + 12.0) / 2)
    assert row.ttft_mean_s == pytest.approx(1.5)


def test_an_answer_of_one_token_has_no_time_per_token() -> None:
    row = row_of("any", run_of(served(1.0, 1.0, 1), served(1.0, 3.0, 5)), PRESET)
    assert row.tpot_mean_s == pytest.approx(0.5)
    assert row.e2e_mean_s == pytest.approx(2.0)


def test_failed_requests_count_and_their_times_do_not() -> None:
    answers = (served(1.0, 3.0, 5), served(None, None, 5, failed=True))
    row = row_of("any", run_of(*answers), PRESET)
    assert (row.requests, row.failed, row.goodput) == (2, 1, 0.5)
    assert (row.ttft_mean_s, row.tpot_mean_s, row.e2e_mean_s) == (1.0, 0.5, 3.0)


def test_a_run_of_nothing_has_a_row() -> None:
    row = row_of("any", run_of(), PRESET)
    assert (row.requests, row.ttft_p99_s, row.tpot_mean_s, row.e2e_mean_s) == (0, 0.0, 0.0, 0.0)
