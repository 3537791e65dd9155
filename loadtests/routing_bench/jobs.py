"""What there is to compute: independent jobs, named by what they measure, and what they give."""

import msgspec

from loadtests.sim.report import Row

OURS = "prefix_aware"
ORACLE = "oracle"
FLOOR = "round_robin"
REPLICAS = 8
"""The fleet for which rates and cache sizes are found; others have as much of both a replica."""


class Saturate(msgspec.Struct, frozen=True, kw_only=True, tag="saturate"):
    """Find the rate at which a fleet of 8 is full, and the cache sizes that go with it.

    Attributes:
        scale: Requests a run, in times of the usual number.
    """

    scenario: str
    scale: float = 1.0


class Measure(msgspec.Struct, frozen=True, kw_only=True, tag="measure"):
    """One run of one policy.

    Attributes:
        load: Percent of the saturation rate.
        cache: A name from `cache_sizes.SIZES`.
        change: What is changed of our policy, as `sensitivity` names it; empty: nothing.
    """

    scenario: str
    load: int
    cache: str
    replicas: int
    seed: int
    policy: str
    change: str = ""
    scale: float = 1.0


Job = Saturate | Measure


class Saturation(msgspec.Struct, frozen=True, kw_only=True):
    """
    Attributes:
        requests_per_s: The highest rate that the best policy keeps up with.
        requests: So many a run.
        blocks: Of a replica's cache, by the size's name.
        keeps_up: Who kept up at that rate.
    """

    requests_per_s: float
    requests: int
    blocks: dict[str, int]
    keeps_up: str


class Result(msgspec.Struct, frozen=True, kw_only=True, tag="result"):
    """What a job gave: a saturation or a row; and the CPU seconds it took."""

    job: Job
    cpu_s: float
    saturation: Saturation | None = None
    row: Row | None = None
