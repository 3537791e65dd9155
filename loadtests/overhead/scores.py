"""What was measured of a contestant in a case: rounds, and the best of them."""

from collections.abc import Sequence

import msgspec


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """
    Attributes:
        cpu_s: Of the contestant's whole process tree, a request.
        generator_busy: The share of a core that the load generator took.
        reads_per_answer: In how many pieces an answer came, on average.
        error: The first of them.
    """

    requests: int
    requests_per_s: float
    p50_s: float
    p99_s: float
    cpu_s: float
    generator_busy: float
    reads_per_answer: float
    errors: int
    error: str


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """Of each measure the best: other work only ever adds. Errors are all counted."""

    rounds: list[Round]

    @property
    def cpu_s(self) -> float:
        return min(one.cpu_s for one in self.rounds)

    @property
    def requests_per_s(self) -> float:
        return max(one.requests_per_s for one in self.rounds)

    @property
    def p50_s(self) -> float:
        return min(one.p50_s for one in self.rounds)

    @property
    def p99_s(self) -> float:
        return min(one.p99_s for one in self.rounds)

    @property
    def errors(self) -> int:
        return sum(one.errors for one in self.rounds)

    @property
    def error(self) -> str:
        return next((one.error for one in self.rounds if one.errors), "")


class Added(msgspec.Struct, frozen=True, kw_only=True):
    """Latency at a load that leaves room, through the router and without it; the best of rounds."""

    rate_per_s: float
    direct_p50_s: float
    direct_p99_s: float
    through_p50_s: float
    through_p99_s: float
    errors: int

    @property
    def p99_s(self) -> float:
        return self.through_p99_s - self.direct_p99_s


class IdleCost(msgspec.Struct, frozen=True, kw_only=True):
    """Resident memory of a router before and after so many connections."""

    connections: int
    before_bytes: int
    after_bytes: int
    errors: int


class ScalePoint(msgspec.Struct, frozen=True, kw_only=True):
    """
    Attributes:
        workers: Processes of the router.
        unasked: The share of a core it takes without requests: for probes and KV events.
    """

    replicas: int
    workers: int
    score: Score
    unasked: float


Scores = dict[str, dict[str, Score]]  # by case, then by contestant


def without_errors(scores: Scores, case: str, names: Sequence[str]) -> dict[str, float]:
    """CPU seconds a request of those who gave no wrong answer in that case."""
    found = scores.get(case, {})
    return {name: found[name].cpu_s for name in names if name in found and not found[name].errors}
