"""Computes one job: a saturation rate with its cache sizes, or one run's row."""

import time
from dataclasses import replace
from statistics import mean

from loadtests.routing_bench.cache_sizes import cache_blocks
from loadtests.routing_bench.jobs import (
    ORACLE,
    OURS,
    REPLICAS,
    Job,
    Measure,
    Result,
    Saturate,
    Saturation,
)
from loadtests.routing_bench.saturation import highest_rate, keeps_up
from loadtests.routing_bench.scenarios import BLOCK_SIZE, PRESET, Scenario
from loadtests.routing_bench.sensitivity import changed
from loadtests.sim.contest import all_routers
from loadtests.sim.oracle import Oracle
from loadtests.sim.report import Row, row_of
from loadtests.sim.router import MakeRouter
from loadtests.sim.world import Run, simulate

STRONG = (OURS, "llmd_affinity", "llmd_precise", "dynamo_cost")
"""Who is tried for the saturation rate: the best of peers' policies on most workloads, and ours."""

WARM_UP_SHARE = 0.2
"""The first requests meet empty caches: they are served, and not counted."""

_RUN_S = 20.0
_REQUESTS_MIN = 600
_REQUESTS_MAX = 2400


def compute(job: Job, scenario: Scenario, saturation: Saturation | None) -> Result:
    """
    Args:
        saturation: Of the scenario; None only for the job that finds it.
    """
    begin = time.process_time()
    if isinstance(job, Saturate):
        found = saturate(job, scenario)
        return Result(job=job, cpu_s=time.process_time() - begin, saturation=found)
    assert saturation is not None
    row = measure(job, scenario, saturation)
    return Result(job=job, cpu_s=time.process_time() - begin, row=row)


def measure(job: Measure, scenario: Scenario, saturation: Saturation) -> Row:
    """One run, without its warm-up."""
    size = job.replicas / REPLICAS
    requests_per_s = saturation.requests_per_s * job.load / 100 * size
    count = round(saturation.requests * size)
    specs = scenario.specs(
        replicas=job.replicas,
        blocks=saturation.blocks[job.cache],
        duration_s=count / requests_per_s,
    )
    requests = scenario.requests(requests_per_s=requests_per_s, seed=job.seed, count=count)
    with changed(router_of(job.policy), job.change) as make:
        return warm_row(job.policy, simulate(requests, make, specs, job.seed))


def warm_row(policy: str, run: Run) -> Row:
    """Of the requests after the warm-up; work and imbalance are the whole run's."""
    whole = row_of(policy, run, PRESET)
    first = int(len(run.served) * WARM_UP_SHARE)
    warm = row_of(policy, replace(run, served=run.served[first:]), PRESET)
    return replace(warm, recomputed_tokens=whole.recomputed_tokens)


def router_of(policy: str) -> MakeRouter:
    return Oracle if policy == ORACLE else all_routers()[policy]


def saturate(job: Saturate, scenario: Scenario) -> Saturation:
    """By bisection on seed 0, with medium caches; these are derived anew for every rate."""
    healthy = replace(scenario, name=scenario.base)
    tried: dict[float, Saturation] = {}

    def kept(requests_per_s: float) -> bool:
        count = requests_a_run(requests_per_s, job.scale)
        requests = list(healthy.requests(requests_per_s=requests_per_s, seed=0, count=count))
        blocks = cache_blocks(
            requests, requests_per_s=requests_per_s, replicas=REPLICAS, block_size=BLOCK_SIZE
        )
        specs = healthy.specs(
            replicas=REPLICAS, blocks=blocks["medium"], duration_s=count / requests_per_s
        )
        for policy in STRONG:
            if keeps_up(simulate(iter(requests), router_of(policy), specs)):
                tried[requests_per_s] = Saturation(
                    requests_per_s=requests_per_s,
                    requests=len(requests),
                    blocks=blocks,
                    keeps_up=policy,
                )
                return True
        return False

    return tried[highest_rate(kept, _cold_rate(healthy))]


def requests_a_run(requests_per_s: float, scale: float) -> int:
    """20 s of them, but 600 to 2,400."""
    return round(scale * min(_REQUESTS_MAX, max(_REQUESTS_MIN, requests_per_s * _RUN_S)))


def _cold_rate(scenario: Scenario) -> float:
    """Requests/s that the fleet's prefills alone could do if nothing were cached."""
    timing = PRESET.timing
    lengths = [len(one.prompt) for one in scenario.requests(requests_per_s=1.0, seed=0, count=100)]
    return REPLICAS / mean(
        timing.token_s * tokens + timing.pair_s * tokens * tokens / 2 for tokens in lengths
    )
