"""What is told of each router: hits, errors, the fastest first."""

import math

import pytest

from loadtests.peers.load import Answered
from loadtests.peers.report import lines_of, row_of


def answered(first_s: float, cached: int = 0) -> Answered:
    return Answered(
        first_s=first_s, last_s=2 * first_s, late_s=0.0, prompt_tokens=100, cached_tokens=cached
    )


def test_errors_count_and_their_times_do_not() -> None:
    row = row_of(
        "a", "trace", [answered(1.0, 50), answered(3.0), Answered(late_s=0.5, error="503")], 0.3
    )
    assert (row.requests, row.first_mean_s, row.first_p99_s, row.whole_mean_s) == (3, 2.0, 3.0, 4.0)
    assert (row.prompt_tokens, row.cached_tokens, row.hit) == (200, 50, 0.25)
    assert row.cpu_s == pytest.approx(0.1)
    assert row.late_p99_s == 0.5
    assert row.errors == {"503": 1}


def test_a_router_that_answered_nothing_has_a_row_too() -> None:
    row = row_of("a", "trace", [Answered(late_s=0.0, error="503")], 0.1)
    assert math.isnan(row.first_mean_s)
    assert row.hit == 0.0
    assert any("503" in line for line in lines_of([row], {}))


def test_the_fastest_comes_first_and_who_is_absent_is_told() -> None:
    rows = [
        row_of("slow", "trace", [answered(2.0)], 0.1),
        row_of("fast", "trace", [answered(1.0)], 0.1),
        row_of("slow", "agents", [answered(1.0)], 0.1),
    ]
    lines = lines_of(rows, {"gone": "not installed"})
    assert [line.split()[0] for line in lines if line.startswith(("fast", "slow"))] == [
        "fast",
        "slow",
        "slow",
    ]
    assert lines[-1] == "gone did not take part: not installed"
