"""The verdict's arithmetic, and that the report says it."""

import pytest

from loadtests.routing_bench.jobs import Job, Result, Saturate
from loadtests.routing_bench.plan import Point
from loadtests.routing_bench.scenarios import scenarios
from loadtests.routing_bench.tables import scenario_section, sensitivity_section, verdict_section
from loadtests.routing_bench.verdict import judge, measured, spread
from tests.loadtests.routing_bench.rows import SATURATION, measure, result, row

FULL = Point("chat", 100, "medium", 8)
HALF = Point("chat", 60, "medium", 8)


def test_ours_is_compared_with_the_best_by_each_measure() -> None:
    rows = {
        "prefix_aware": [row("prefix_aware", 0.6, 3.0, hits=90), row("prefix_aware", 0.8, 3.0)],
        "dynamo_cost": [row("dynamo_cost", 1.0, 9.0), row("dynamo_cost", 1.0, 9.0)],
        "llmd_weighted": [row("llmd_weighted", 1.5, 2.0), row("llmd_weighted", 1.5, 2.0)],
        "random": [row("random", 0.1)],  # only screened
        "oracle": [row("oracle", 0.5), row("oracle", 0.5)],
    }
    verdict = judge(FULL, rows)
    assert verdict is not None
    assert (verdict.mean_peer, verdict.p99_peer) == ("dynamo_cost", "llmd_weighted")
    assert verdict.mean_ratio == pytest.approx(0.7)
    assert verdict.by_seed == pytest.approx((0.6, 0.8))
    assert verdict.p99_ratio == pytest.approx(1.5)
    assert verdict.hit_ratio == pytest.approx(0.95)
    assert verdict.oracle_share == pytest.approx(0.5 / 0.7)
    assert [one.split()[0] for one in verdict.missed] == ["p99", "oracle's"]


@pytest.mark.parametrize(
    ("point", "mean_s", "missed"),
    [(FULL, 0.69, False), (FULL, 0.75, True), (HALF, 0.99, False), (HALF, 1.01, True)],
)
def test_more_is_asked_under_load(point: Point, mean_s: float, missed: bool) -> None:
    verdict = judge(
        point, {"prefix_aware": [row("prefix_aware", mean_s)], "random": [row("random", 1.0)]}
    )
    assert verdict is not None
    assert bool(verdict.missed) is missed
    assert verdict.oracle_share is None


def test_nothing_is_said_of_a_point_without_ours_or_without_peers() -> None:
    assert judge(FULL, {"random": [row("random", 1.0)]}) is None
    assert judge(FULL, {"prefix_aware": [row("prefix_aware", 1.0)]}) is None


def test_rows_are_sorted_to_points_and_changes_of_ours_are_none() -> None:
    jobs = [
        Saturate(scenario="chat"),
        measure(seed=0),
        measure(seed=1),
        measure("random"),
        measure(change="x"),
    ]
    done: dict[Job, Result] = {job: result(job) for job in jobs[:-2]}
    found = measured(done, jobs)
    assert {name: len(rows) for name, rows in found[FULL].items()} == {"prefix_aware": 2}


def test_the_report_has_every_policy_with_its_spread_and_what_was_missed() -> None:
    rows = {
        "prefix_aware": [row("prefix_aware", 1.0), row("prefix_aware", 2.0)],
        "random": [row("random", 1.0), row("random", 1.2)],
    }
    text = "\n".join(scenario_section(scenarios(None)["chat"], SATURATION, {FULL: rows}))
    assert "10.00 requests/s" in text
    assert "1.500 ± 0.500" in text
    assert "**prefix_aware**" in text
    verdict = judge(FULL, rows)
    assert verdict is not None
    said = "\n".join(verdict_section([verdict]))
    assert "Missed at 1 of 1 points" in said
    assert "- chat 100 % medium 8 replicas: mean 1.36 of at most 0.70" in said


def test_sensitivity_is_the_ratio_to_the_policy_as_it_is() -> None:
    done: dict[Job, Result] = {}
    for seed in (0, 1):
        for change, mean_s in (("", 1.0 + seed), ("x × 2", 2.0 + 2 * seed)):
            job = measure(seed=seed, change=change)
            done[job] = result(job, mean_s)
    missing = measure(change="y × 2")
    lines = sensitivity_section(done, [*done, missing])
    assert any("x × 2" in line and "2.00" in line for line in lines)
    assert spread([1.0, 3.0]).mean == 2.0
