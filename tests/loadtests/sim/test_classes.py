"""Classes of urgency: requests say their target, rows say how many met it, and urgent ones gain."""

from dataclasses import replace
from statistics import mean

from loadtests.sim.ours import Ours
from loadtests.sim.report import Row, row_of, table
from loadtests.sim.workloads.registry import build
from loadtests.sim.workloads.workload import generate
from loadtests.sim.world import ReplicaSpec, simulate
from replica.core.timing import PRESETS

PRESET = PRESETS["h100-8b"]


def row(seed: int, *, told: bool) -> Row:
    """Of a full fleet, by targets the router is told of, or not."""
    asked = list(generate(build("classes"), seed=seed, requests_per_s=20.0, count=500))
    told_of = asked if told else [replace(one, ttft_target_s=None) for one in asked]
    run = simulate(iter(told_of), Ours, [ReplicaSpec(preset=PRESET)] * 4, seed)
    for served in run.served:
        served.ttft_target_s = asked[served.request].ttft_target_s
    return row_of("ours", run, PRESET)


def test_more_meet_their_targets_if_the_router_knows_them() -> None:
    told, untold = ([row(seed, told=told) for seed in range(4)] for told in (True, False))
    assert {tuple(one.target_met) for one in told} == {("0.3", "20")}
    assert all(one.target_met["20"] > 0.98 for one in told)
    urgent, before = (mean(one.target_met["0.3"] for one in rows) for rows in (told, untold))
    assert before < urgent < 1.0


def test_a_table_shows_targets_where_there_are_any() -> None:
    some = row(1, told=True)
    none = replace(some, target_met={})
    heads, _, _, without = table([some, none])
    assert "target 0.3 s met" in heads
    assert without.endswith("– |"), "nobody asked, so nobody missed it"
    assert "target" not in table([none])[0]
