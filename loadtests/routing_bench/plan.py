"""Which jobs there are: what can be computed now, given what has been.

    saturate ─▶ screen: all policies at one point ─▶ matrix: ours, the oracle, the chosen peers

By default the matrix is a cross, not the full product:

    load       60 85 100 115 %   medium cache                 8 replicas
    cache      tight medium ample            100 % load       8 replicas
    fleet      64 replicas       medium      100 % load
    narrow     60 and 100 %      medium                       8 replicas   (traps, faults)

with all seeds where they cross, three elsewhere, one for 64 replicas.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

from loadtests.routing_bench.cache_sizes import SIZES
from loadtests.routing_bench.jobs import (
    FLOOR,
    ORACLE,
    OURS,
    REPLICAS,
    Job,
    Measure,
    Result,
    Saturate,
    Saturation,
)
from loadtests.routing_bench.scenarios import Scenario
from loadtests.sim.report import Row

ALWAYS = (
    "sglang_cache_aware",
    "vllm_router_cache_aware",
    "smg_events",
    "dynamo_cost",
    "llmd_weighted",
    FLOOR,
)
"""Peers of the matrix whatever the screen says: what real routers do, and the floor."""

STRONGEST = 3
_SEEDS_SCREEN = 2  # of one run chance picks
FULL_LOAD = 100
LOADS = (60, 85, FULL_LOAD, 115)
_NARROW_LOADS = (60, FULL_LOAD)
USUAL_CACHE = "medium"
FLEETS = (REPLICAS, 64)
SEEDS = 5
_SEEDS_ASIDE = 3
_SEEDS_LARGE = 1
_SATURATE_WEIGHT = 20.0

Results = Mapping[Job, Result]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """What is asked for.

    Attributes:
        policies: All that may take part, ours first; all of them are screened.
        chosen: Whether `policies` were named: then all of them run everywhere, without a screen.
        full: The whole product, and all seeds everywhere.
        changes: Of our policy, as `sensitivity` names them: only ours runs then.
    """

    scenarios: Sequence[Scenario]
    policies: Sequence[str]
    chosen: bool = False
    loads: Sequence[int] = LOADS
    caches: Sequence[str] = tuple(SIZES)
    fleets: Sequence[int] = FLEETS
    seeds: int = SEEDS
    full: bool = False
    scale: float = 1.0
    changes: Sequence[str] = ()


class Point(NamedTuple):
    """Where policies meet."""

    scenario: str
    load: int
    cache: str
    replicas: int


def jobs(matrix: Matrix, done: Results) -> list[Job]:
    """All that are known by now, those that are done among them."""
    found: dict[Job, None] = {}
    for scenario in matrix.scenarios:
        for job in _jobs_of(matrix, scenario, done):
            found.setdefault(job)
    return list(found)


def weight(job: Job) -> float:
    """How long it takes, beside a run of 8 replicas."""
    return _SATURATE_WEIGHT if isinstance(job, Saturate) else job.replicas / REPLICAS


def weight_left(matrix: Matrix, done: Results) -> float:
    """Of all that is not done, also of what is not known yet: about as much as it will be."""
    left = sum(weight(job) for job in jobs(matrix, done) if job not in done)
    contestants = len(matrix.policies) if matrix.chosen else len(ALWAYS) + STRONGEST + 1
    if matrix.changes:
        contestants = 1 + len(matrix.changes)
    for scenario in matrix.scenarios:
        if saturation_of(scenario, matrix.scale, done) is None or (
            not matrix.changes and contestants_of(matrix, scenario, done) is None
        ):
            runs = sum(
                point.replicas / REPLICAS * _seeds(matrix, point)
                for point in points(matrix, scenario)
            )
            screened = 0 if matrix.chosen or matrix.changes else len(matrix.policies)
            left += screened * min(matrix.seeds, _SEEDS_SCREEN) + runs * contestants
    return left


def _jobs_of(matrix: Matrix, scenario: Scenario, done: Results) -> Iterator[Job]:
    yield Saturate(scenario=scenario.base, scale=matrix.scale)
    if saturation_of(scenario, matrix.scale, done) is None:
        return
    if matrix.changes:
        contestants: Sequence[str] | None = (OURS,)
    else:
        if not matrix.chosen:
            yield from _screen(matrix, scenario)
        contestants = contestants_of(matrix, scenario, done)
    if contestants is None:
        return
    for point in points(matrix, scenario):
        for seed in range(_seeds(matrix, point)):
            for policy in contestants:
                for change in ("", *matrix.changes):
                    yield _measure(matrix, point, seed, policy, change)


def saturation_of(scenario: Scenario, scale: float, done: Results) -> Saturation | None:
    result = done.get(Saturate(scenario=scenario.base, scale=scale))
    return None if result is None else result.saturation


def points(matrix: Matrix, scenario: Scenario) -> list[Point]:
    """Where its policies meet."""
    product = (
        Point(scenario.name, load, cache, replicas)
        for replicas in matrix.fleets
        for cache in matrix.caches
        for load in matrix.loads
    )
    return [one for one in product if matrix.full or _on_the_cross(matrix, one, scenario.narrow)]


def _on_the_cross(matrix: Matrix, point: Point, narrow: bool) -> bool:
    """Of what is asked for: an axis with one value is no arm."""
    several_loads = len(matrix.loads) > 1
    aside = (len(matrix.caches) > 1 and point.cache != USUAL_CACHE) + (
        len(matrix.fleets) > 1 and point.replicas != REPLICAS
    )
    if narrow:
        return not aside and (not several_loads or point.load in _NARROW_LOADS)
    return aside + (several_loads and point.load != FULL_LOAD) <= 1


def _seeds(matrix: Matrix, point: Point) -> int:
    if matrix.full or point[1:] == (FULL_LOAD, USUAL_CACHE, REPLICAS):
        return matrix.seeds
    return min(matrix.seeds, _SEEDS_ASIDE if point.replicas == REPLICAS else _SEEDS_LARGE)


def _screen(matrix: Matrix, scenario: Scenario) -> Iterator[Measure]:
    """At the point where the arms of the cross meet: its runs are the matrix's, too."""
    point = Point(scenario.name, FULL_LOAD, USUAL_CACHE, REPLICAS)
    for seed in range(min(matrix.seeds, _SEEDS_SCREEN)):
        for policy in matrix.policies:
            yield _measure(matrix, point, seed, policy, "")


def contestants_of(matrix: Matrix, scenario: Scenario, done: Results) -> Sequence[str] | None:
    """Ours, the oracle, the strongest peers and those that always are; None: not yet known."""
    if matrix.chosen:
        return matrix.policies
    screened: dict[str, list[Row]] = {}
    for job in _screen(matrix, scenario):
        result = done.get(job)
        if result is None:
            return None
        assert result.row is not None
        screened.setdefault(job.policy, []).append(result.row)
    return choose(screened)


def choose(screened: Mapping[str, Sequence[Row]]) -> list[str]:
    """By mean TTFT over the seeds; what fails requests comes after what does not."""

    def place(name: str) -> tuple[int, float]:
        rows = screened[name]
        return sum(one.failed for one in rows), mean(one.ttft_mean_s for one in rows)

    peers = sorted((name for name in screened if name not in (OURS, ORACLE)), key=place)
    kept = set(peers[:STRONGEST]) | {name for name in ALWAYS if name in screened}
    return [OURS, ORACLE, *(name for name in peers if name in kept)]


def _measure(matrix: Matrix, point: Point, seed: int, policy: str, change: str) -> Measure:
    return Measure(
        scenario=point.scenario,
        load=point.load,
        cache=point.cache,
        replicas=point.replicas,
        seed=seed,
        policy=policy,
        change=change,
        scale=matrix.scale,
    )
