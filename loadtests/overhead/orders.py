"""What the load generator is told, and what it tells: one JSON line each."""

import msgspec

from loadtests.overhead.cases import Case


class Closed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Every connection sends its next request when the last is answered, for `seconds`."""

    port: int
    case: Case
    connections: int
    seconds: float


class Open(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Requests come at random times that depend on `seed` alone, `rate_per_s` on average.

    One that finds all connections taken waits; its latency counts from when it came.
    """

    port: int
    case: Case
    connections: int
    seconds: float
    rate_per_s: float
    seed: int = 0


class Idle(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Opens connections, asks once over each, and keeps them until told `LetGo`."""

    port: int
    connections: int


class LetGo(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    pass


Order = Closed | Open | Idle | LetGo


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """
    Attributes:
        requests: Answered, rightly or not.
        p50_s, p99_s: Of the latencies of right answers; 0 without any.
        busy: The share of a core that the load generator itself took.
        reads_per_answer: How often an answer's bytes came, on average: of a stream, its packets.
    """

    requests: int = 0
    errors: int = 0
    error: str = ""
    seconds: float = 0.0
    p50_s: float = 0.0
    p99_s: float = 0.0
    busy: float = 0.0
    reads_per_answer: float = 0.0
