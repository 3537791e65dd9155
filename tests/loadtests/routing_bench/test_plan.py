"""The matrix: rates first, then a screen, then ours, the oracle and the peers that matter."""

from collections import Counter

import pytest

from loadtests.routing_bench.jobs import Job, Measure, Result, Saturate
from loadtests.routing_bench.plan import (
    ALWAYS,
    STRONGEST,
    Matrix,
    choose,
    jobs,
    weight,
    weight_left,
)
from loadtests.routing_bench.scenarios import scenarios
from loadtests.sim.contest import all_routers
from tests.loadtests.routing_bench.rows import result, row

KNOWN = scenarios(None)
POLICIES = [*all_routers(), "oracle"]


def matrix(*names: str, **other: object) -> Matrix:
    chosen = [KNOWN[name] for name in names]
    return Matrix(scenarios=chosen, policies=POLICIES, **other)  # type: ignore[arg-type]


def finished(asked: Matrix, rounds: int = 9) -> dict[Job, Result]:
    """All done, each peer slower than the one before it."""
    done: dict[Job, Result] = {}
    for _ in range(rounds):
        for job in jobs(asked, done):
            place = POLICIES.index(job.policy) if isinstance(job, Measure) else 0
            done.setdefault(job, result(job, 1.0 + place))
    return done


def test_the_rate_comes_first_then_two_runs_of_every_policy() -> None:
    asked = matrix("chat")
    assert jobs(asked, {}) == [Saturate(scenario="chat")]
    done = {Saturate(scenario="chat"): result(Saturate(scenario="chat"))}
    screen = jobs(asked, done)[1:]
    assert [one.policy for one in screen if isinstance(one, Measure)] == [*POLICIES, *POLICIES]
    assert {(one.load, one.cache, one.seed) for one in screen if isinstance(one, Measure)} == {
        (100, "medium", 0),
        (100, "medium", 1),
    }


def test_the_strongest_run_on_with_real_routers_and_the_floor() -> None:
    screened = {name: [row(name, 1.0 + at)] * 2 for at, name in enumerate(POLICIES)}
    screened["preble_e2"] = [row("preble_e2", 0.1), row("preble_e2", 1.1)]
    screened["session"] = [row("session", 0.05), row("session", 90.0)]
    screened["random"] = [row("random", 0.05), row("random", 0.05, failed=3)]
    chosen = choose(screened)
    assert chosen[:2] == ["prefix_aware", "oracle"]
    assert "preble_e2" in chosen
    assert "session" not in chosen, "it was soon by chance"
    assert "random" not in chosen
    assert set(ALWAYS) <= set(chosen)
    assert len(chosen) <= 2 + STRONGEST + len(ALWAYS)


def test_the_default_is_a_cross_with_most_seeds_where_its_arms_meet() -> None:
    done = finished(matrix("chat"))
    runs = Counter(
        (one.load, one.cache, one.replicas)
        for one in done
        if isinstance(one, Measure) and one.policy == "prefix_aware"
    )
    assert runs == {
        (60, "medium", 8): 3,
        (85, "medium", 8): 3,
        (100, "medium", 8): 5,
        (115, "medium", 8): 3,
        (100, "tight", 8): 3,
        (100, "ample", 8): 3,
        (100, "medium", 64): 1,
    }


def test_traps_and_faults_are_measured_at_few_points_and_share_their_bases_rate() -> None:
    done = finished(matrix("trap-lengths", "one-slow"))
    assert {one.scenario for one in done if isinstance(one, Saturate)} == {"trap-lengths", "agents"}
    points = {
        (one.scenario, one.load, one.cache, one.replicas)
        for one in done
        if isinstance(one, Measure)
    }
    assert points == {
        (name, load, "medium", 8) for name in ("trap-lengths", "one-slow") for load in (60, 100)
    }


def test_the_full_product_has_every_seed_everywhere() -> None:
    done = finished(matrix("chat", full=True, seeds=2))
    ours = [one for one in done if isinstance(one, Measure) and one.policy == "prefix_aware"]
    assert len(ours) == 4 * 3 * 2 * 2


def test_an_axis_with_one_value_is_no_arm_of_the_cross() -> None:
    asked = matrix("chat", "trap-lengths", loads=(85,), caches=("tight",), fleets=(64,), seeds=1)
    points = {
        (one.load, one.cache, one.replicas)
        for one in finished(asked)
        if isinstance(one, Measure) and one.load != 100  # the screen's
    }
    assert points == {(85, "tight", 64)}


def test_policies_that_are_named_need_no_screen() -> None:
    asked = Matrix(
        scenarios=[KNOWN["chat"]],
        policies=["prefix_aware", "random"],
        chosen=True,
        loads=(100,),
        seeds=1,
    )
    policies = {one.policy for one in finished(asked) if isinstance(one, Measure)}
    assert policies == {"prefix_aware", "random"}


def test_changes_run_with_ours_alone_and_beside_it_unchanged() -> None:
    asked = matrix("chat", loads=(100,), caches=("medium",), fleets=(8,), seeds=1, changes=("a",))
    runs = [(one.policy, one.change) for one in finished(asked) if isinstance(one, Measure)]
    assert runs == [("prefix_aware", ""), ("prefix_aware", "a")]


@pytest.mark.parametrize("full", [False, True])
def test_what_is_left_is_foreseen_before_it_is_known_and_ends_at_nothing(full: bool) -> None:
    asked = matrix("chat", "trap-lengths", full=full)
    done = finished(asked)
    whole = sum(map(weight, done))
    assert weight_left(asked, {}) == pytest.approx(whole, rel=0.35)
    assert weight_left(asked, done) == 0
