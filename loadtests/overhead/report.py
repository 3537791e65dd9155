"""The tables: every contestant in every case beside ours, and every target, met or not."""

import math
from collections.abc import Callable, Mapping, Sequence

import msgspec

from cli.terminal import number, table
from loadtests.overhead.cases import CHAT_400K, PLAIN, REPEATED, STREAM_20
from loadtests.overhead.contestants import CONTESTANTS, NGINX, OURS, Kind
from loadtests.overhead.scores import (
    Added,
    IdleCost,
    ScalePoint,
    Score,
    Scores,
    without_errors,
)
from loadtests.stand_in import EVENT_INTERVAL_S

PLAIN_US_MAX = 90.0
OF_CACHE_AWARE_MAX = 0.5
OF_ANY_STREAM_MAX = 0.5
OF_NGINX_STREAM_MAX = 3.0
CHAT_400K_US_MAX = 2500.0
UNIQUE_OF_REPEATED_MAX = 1.1
ADDED_MS_MAX = 1.0
IDLE_MB_MAX = 150.0

_ROUND_ROBIN = [one.name for one in CONTESTANTS if one.kind is Kind.ROUND_ROBIN]
_CACHE_AWARE = [one.name for one in CONTESTANTS if one.kind is Kind.CACHE_AWARE]
# Heading, value as shown, whether more of it is better.
_MEASURES: Sequence[tuple[str, Callable[[Score], float], bool]] = (
    ("requests/s", lambda one: one.requests_per_s, True),
    ("p50, ms", lambda one: one.p50_s * 1e3, False),
    ("p99, ms", lambda one: one.p99_s * 1e3, False),
    ("CPU, µs a request", lambda one: one.cpu_s * 1e6, False),
)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """
    Attributes:
        value: Ours, infinite if it gave wrong answers; None: it, or what it is compared with, was
            not measured, or gave wrong answers itself.
        most: What it may be.
        below: It must be less than `most`.
        of: What it is compared with.
    """

    what: str
    unit: str
    value: float | None
    most: float
    below: bool = False
    of: str = ""

    @property
    def met(self) -> bool | None:
        """None when it could not be told."""
        if self.value is None:
            return None
        return self.value < self.most if self.below else self.value <= self.most


def targets(scores: Scores, added: Added | None, idle: IdleCost | None) -> list[Target]:
    """Every target, in the order in which they matter. Who gave wrong answers is not compared."""
    chat_s = _ours_s(scores, CHAT_400K.name)
    plain_s = _ours_s(scores, PLAIN.name)
    return [
        Target(
            what="plain, 1 KB",
            unit="µs",
            value=None if plain_s is None else plain_s * 1e6,
            most=PLAIN_US_MAX,
        ),
        _against(
            scores,
            PLAIN.name,
            _CACHE_AWARE,
            "plain, 1 KB, of the best cache-aware router in Rust",
            OF_CACHE_AWARE_MAX,
        ),
        _against(
            scores,
            PLAIN.name,
            _ROUND_ROBIN,
            "plain, 1 KB, of the best round robin in Rust",
            1.0,
            below=True,
        ),
        _against(
            scores,
            STREAM_20.name,
            [*_ROUND_ROBIN, *_CACHE_AWARE],
            "stream of 20 chunks, of the best router in Rust",
            OF_ANY_STREAM_MAX,
        ),
        _against(
            scores, STREAM_20.name, [NGINX], "stream of 20 chunks, of nginx", OF_NGINX_STREAM_MAX
        ),
        Target(
            what=CHAT_400K.name,
            unit="µs",
            value=None if chat_s is None else chat_s * 1e6,
            most=CHAT_400K_US_MAX,
        ),
        Target(
            what="plain, 1 KB, unique of repeated",
            unit="×",
            value=_ratio(plain_s, _ours_s(scores, REPEATED.name)),
            most=UNIQUE_OF_REPEATED_MAX,
        ),
        Target(
            what="added latency at half load, p99",
            unit="ms",
            value=None if added is None else math.inf if added.errors else added.p99_s * 1e3,
            most=ADDED_MS_MAX,
        ),
        *_idle_targets(idle),
    ]


def _idle_targets(idle: IdleCost | None) -> list[Target]:
    connections, grown, total = 0, None, None
    if idle is not None:
        connections = idle.connections
        grown = math.inf if idle.errors else (idle.after_bytes - idle.before_bytes) / 1e6
        total = math.inf if idle.errors else idle.after_bytes / 1e6
    what = f"memory with {connections:,} idle connections"
    return [
        Target(what=f"{what}, growth", unit="MB", value=grown, most=IDLE_MB_MAX),
        Target(what=f"{what}, total", unit="MB", value=total, most=IDLE_MB_MAX),
    ]


def _against(
    scores: Scores,
    case: str,
    peers: Sequence[str],
    what: str,
    most: float,
    *,
    below: bool = False,
) -> Target:
    """Ours as a share of the best peer's CPU time."""
    found = without_errors(scores, case, peers)
    best = min(found, key=lambda name: found[name], default=None)
    return Target(
        what=what,
        unit="×",
        value=None if best is None else _ratio(_ours_s(scores, case), found[best]),
        most=most,
        below=below,
        of=best or "",
    )


def _ours_s(scores: Scores, case: str) -> float | None:
    score = scores.get(case, {}).get(OURS)
    if score is None:
        return None
    return math.inf if score.errors else score.cpu_s


def _ratio(value: float | None, of: float | None) -> float | None:
    return value / of if value is not None and of else None


def target_lines(found: Sequence[Target]) -> list[str]:
    rows = []
    for one in found:
        verdict = {True: "yes", False: "NO", None: "-"}[one.met]
        rows.append(
            [
                one.what + (f" ({one.of})" if one.of else ""),
                one.unit,
                "-" if one.value is None else number(one.value),
                ("<" if one.below else "≤") + f" {number(one.most)}",
                verdict,
            ]
        )
    return table(["target: CPU time, if nothing else is said", "unit", OURS, "most", "met"], rows)


def contest_lines(scores: Scores, absent: Mapping[str, str]) -> list[str]:
    """One table of all cases; below it what is to know about it, and who was not measured."""
    headings = [heading for heading, _, _ in _MEASURES]
    headings = ["case", "contestant", *headings, "pieces an answer", "errors"]
    rows = []
    for case, by_name in scores.items():
        for place, (name, score) in enumerate(by_name.items()):
            rows.append(
                [
                    "" if place else case,
                    name,
                    *(_cell(by_name, name, value, more) for _, value, more in _MEASURES),
                    number(max(one.reads_per_answer for one in score.rounds)),
                    f"{score.errors} !" if score.errors else "0",
                ]
            )
    lines = table(headings, rows)
    lines.append(f"(…×): how many times better {OURS} is; below 1 it is worse.")
    lines.append(f"A replica sends a chunk of a stream every {EVENT_INTERVAL_S * 1e3:.0f} ms.")
    lines += [
        f"! {name}, {case}: {score.errors} of {sum(one.requests for one in score.rounds)} answers"
        f" were wrong, the first: {score.error!r}"
        for case, by_name in scores.items()
        for name, score in by_name.items()
        if score.errors
    ]
    lines += [f"{name} was not measured: {reason}" for name, reason in absent.items()]
    return lines


def _cell(
    by_name: Mapping[str, Score], name: str, value: Callable[[Score], float], more_is_better: bool
) -> str:
    theirs = value(by_name[name])
    if name == OURS or OURS not in by_name or not theirs:
        return number(theirs)
    ours = value(by_name[OURS])
    ratio = ours / theirs if more_is_better else theirs / max(ours, 1e-9)
    return f"{number(theirs)} ({number(ratio)}×)"


def latency_line(added: Added) -> str:
    values = [added.direct_p50_s, added.through_p50_s, added.direct_p99_s, added.through_p99_s]
    direct_p50, through_p50, direct_p99, through_p99 = (number(value * 1e3) for value in values)
    return (
        f"at {added.rate_per_s:,.0f} requests/s, half of what {OURS} can do here: p50 {direct_p50} "
        f"ms direct, {through_p50} ms through it; p99 {direct_p99} and {through_p99} ms"
    )


def unasked_line(shares: Mapping[str, float]) -> str:
    """It is part of what a request costs above, the more the fewer requests a second there are."""
    told = ", ".join(f"{name} {number(share * 1e3)}" for name, share in shares.items())
    return f"without requests, ms of CPU time a second: {told}"


def scaling_lines(points: Sequence[ScalePoint]) -> list[str]:
    rows = [
        [
            str(one.replicas),
            str(one.workers),
            number(one.score.cpu_s * 1e6),
            number(one.score.requests_per_s),
            number(one.unasked * 1e3),
            str(one.score.errors),
        ]
        for one in points
    ]
    headings = [
        *("replicas", "workers", "CPU, µs a request", "requests/s"),
        *("unasked, CPU ms/s", "errors"),
    ]
    return table(headings, rows)
