"""What policies are measured on: generated workloads, traps among them, faults, and traces.

Seeds of a generated workload are those of its generator and of the router. Those of a trace are
different slices of it (five, evenly spread, overlapping where it is short) and the router's seed;
arrivals keep their gaps, all scaled so that the slice has the rate that is asked.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from loadtests.provenance import ROOT
from loadtests.sim import mooncake
from loadtests.sim.request import SimRequest
from loadtests.sim.workloads.registry import WORKLOADS, build
from loadtests.sim.workloads.workload import generate
from loadtests.sim.world import ReplicaSpec
from replica.core.timing import PRESETS

BLOCK_SIZE = 64
PRESET = PRESETS["h100-8b"]
SLICES = 5
_TRACE = "trace-"
_SLOW_TIMES = 3.0
_HALF_SLOW_TIMES = 2.0
_LATE_S = 5.0

FAULTS = {
    "one-slow": "agents, and one replica takes three times as long for everything",
    "one-late": "agents, and the events of one replica come 5 s late",
    "one-restarts": "agents, and one replica restarts empty in the middle",
    "half-slow": "agents, and half of the replicas take twice as long and cache half as much",
}
_FAULTS_ON = "agents"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """
    Attributes:
        base: Whose saturation rate and cache sizes it has; its own name unless it has a fault.
        narrow: Measured at few points: a trap, or a fault.
        trace: None: generated.
    """

    name: str
    base: str
    narrow: bool
    trace: Path | None = None

    def requests(self, *, requests_per_s: float, seed: int, count: int) -> Iterator[SimRequest]:
        """In the order they arrive, at most `count`."""
        if self.trace is not None:
            return _slice(self.trace, requests_per_s, seed, count)
        return generate(build(self.base), seed=seed, requests_per_s=requests_per_s, count=count)

    def specs(self, *, replicas: int, blocks: int, duration_s: float) -> list[ReplicaSpec]:
        """The fleet, its one faulty replica first, or its slower half last.

        Args:
            duration_s: Of the arrivals.
        """
        usual = ReplicaSpec(preset=PRESET, block_size=BLOCK_SIZE, cache_blocks=blocks)
        if self.name == "half-slow":
            old = replace(usual, slowness=_HALF_SLOW_TIMES, cache_blocks=blocks // 2)
            return [usual] * (replicas - replicas // 2) + [old] * (replicas // 2)
        first = {
            "one-slow": replace(usual, slowness=_SLOW_TIMES),
            "one-late": replace(usual, event_delay_s=_LATE_S),
            "one-restarts": replace(usual, restarts_at_s=(duration_s / 2,)),
        }.get(self.name, usual)
        return [first] + [usual] * (replicas - 1)


def scenarios(traces: Path | None) -> Mapping[str, Scenario]:
    """All there are, by name, in the order of the report."""
    found = []
    for path in sorted(traces.glob("*.jsonl")) if traces is not None else ():
        name = _TRACE + path.stem
        found.append(Scenario(name=name, base=name, narrow=False, trace=path))
    found += [Scenario(name=name, base=name, narrow=name.startswith("trap-")) for name in WORKLOADS]
    found += [Scenario(name=name, base=_FAULTS_ON, narrow=True) for name in FAULTS]
    return {one.name: one for one in found}


def traces_folder(given: Path | None) -> Path | None:
    """Where traces lie: what was given, else WARMROUTE_TRACES, else beside this checkout, if there.

    Raises:
        ValueError: A folder was named that is none.
    """
    named = given or (Path(os.environ["WARMROUTE_TRACES"]) if _named() else None)
    if named is not None:
        if not named.is_dir():
            raise ValueError(f"{named}: no such folder")
        return named
    beside = ROOT.parent / "shared" / "traces"
    return beside if beside.is_dir() else None


def _named() -> bool:
    return bool(os.environ.get("WARMROUTE_TRACES"))


def _slice(path: Path, requests_per_s: float, seed: int, count: int) -> Iterator[SimRequest]:
    with path.open("rb") as file:
        lines = sum(1 for _ in file)
    count = min(count, lines)
    first = (lines - count) * (seed % SLICES) // (SLICES - 1)
    found: Sequence[SimRequest] = list(islice(mooncake.read(path), first, first + count))
    begin_s = found[0].arrival_s
    span_s = found[-1].arrival_s - begin_s
    scale = count / requests_per_s / span_s if span_s else 0.0
    for number, one in enumerate(found):
        yield replace(one, number=number, arrival_s=(one.arrival_s - begin_s) * scale)
