"""Ours beside the best peer at every point: ratios, the oracle's share, and which targets fail."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from loadtests.routing_bench.jobs import ORACLE, OURS, Measure
from loadtests.routing_bench.plan import FULL_LOAD, Point, Results
from loadtests.sim.report import Row

RATIO_MAX = 1.0
"""Of ours to the best peer's, for mean and p99 TTFT, everywhere."""

LOADED_RATIO_MAX = 0.7
"""Of mean TTFT, from the saturation rate up."""

ORACLE_SHARE_MIN = 0.9
"""The oracle's mean TTFT over ours."""

Measured = Mapping[Point, Mapping[str, Sequence[Row]]]
"""Rows by point and policy, one a seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A number over seeds."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One point.

    Attributes:
        mean_peer, p99_peer: Who has the lowest mean TTFT, and who the lowest p99.
        mean_ratio, p99_ratio: Ours over theirs; below 1 ours is sooner.
        by_seed: The lowest and the highest ratio of means over seeds.
        hit_ratio: Our hit tokens over those of `mean_peer`; None where it has none.
        oracle_share: The oracle's mean TTFT over ours; None where it did not run.
        missed: Targets, each in words.
    """

    point: Point
    mean_peer: str
    mean_ratio: float
    by_seed: tuple[float, float]
    p99_peer: str
    p99_ratio: float
    hit_ratio: float | None
    oracle_share: float | None
    missed: tuple[str, ...]


def measured(results: Results, wanted: Iterable[object]) -> Measured:
    """The rows of those wanted jobs that are done, without changes of ours."""
    found: dict[Point, dict[str, list[Row]]] = {}
    for job in wanted:
        if not isinstance(job, Measure) or job.change or job not in results:
            continue
        row = results[job].row
        assert row is not None
        point = Point(job.scenario, job.load, job.cache, job.replicas)
        found.setdefault(point, {}).setdefault(job.policy, []).append(row)
    return found


def spread(values: Sequence[float]) -> Spread:
    return Spread(mean=mean(values), low=min(values), high=max(values))


def judge(point: Point, rows: Mapping[str, Sequence[Row]]) -> Verdict | None:
    """None where ours or all peers are missing. Peers that were only screened do not count."""
    seeds = len(rows.get(OURS, ()))
    peers = [name for name in rows if name not in (OURS, ORACLE) and 0 < seeds <= len(rows[name])]
    if not peers:
        return None
    means = {name: [one.ttft_mean_s for one in rows[name][:seeds]] for name in (OURS, *peers)}
    p99s = {name: mean(one.ttft_p99_s for one in rows[name][:seeds]) for name in (OURS, *peers)}
    mean_peer = min(peers, key=lambda name: mean(means[name]))
    p99_peer = min(peers, key=lambda name: p99s[name])
    mean_ratio = _ratio(mean(means[OURS]), mean(means[mean_peer]))
    p99_ratio = _ratio(p99s[OURS], p99s[p99_peer])
    by_seed = [_ratio(a, b) for a, b in zip(means[OURS], means[mean_peer], strict=True)]
    hits = sum(one.hit_tokens for one in rows[mean_peer][:seeds])
    oracle = [one.ttft_mean_s for one in rows.get(ORACLE, ())][:seeds]
    share = _ratio(mean(oracle), mean(means[OURS][: len(oracle)])) if oracle else None
    return Verdict(
        point=point,
        mean_peer=mean_peer,
        mean_ratio=mean_ratio,
        by_seed=(min(by_seed), max(by_seed)),
        p99_peer=p99_peer,
        p99_ratio=p99_ratio,
        hit_ratio=sum(one.hit_tokens for one in rows[OURS][:seeds]) / hits if hits else None,
        oracle_share=share,
        missed=_missed(point.load, mean_ratio, p99_ratio, share),
    )


def _missed(load: int, mean_ratio: float, p99_ratio: float, share: float | None) -> tuple[str, ...]:
    most = LOADED_RATIO_MAX if load >= FULL_LOAD else RATIO_MAX
    found = []
    if mean_ratio > most:
        found.append(f"mean {mean_ratio:.2f} of at most {most:.2f}")
    if p99_ratio > RATIO_MAX:
        found.append(f"p99 {p99_ratio:.2f} of at most {RATIO_MAX:.2f}")
    if share is not None and share < ORACLE_SHARE_MIN:
        found.append(f"oracle's share {share:.2f} of at least {ORACLE_SHARE_MIN:.2f}")
    return tuple(found)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 1.0
