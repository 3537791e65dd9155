"""One row a router and load: what clients saw, what caches held, what the router took."""

from collections.abc import Sequence
from statistics import mean

import msgspec

from cli.terminal import table
from loadtests.peers.load import Answered
from loadtests.quantiles import quantile

_NONE = float("nan")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What one router came to under one load. Times are seconds, of whole answers.

    Attributes:
        first_mean_s, first_p50_s, first_p90_s, first_p99_s: To the first token, from when the
            request was due.
        whole_mean_s: To the last one.
        hit: Share of prompt tokens that were cached.
        cpu_s: The router's own, of all its processes, a request.
        late_p99_s: How late requests were sent: where this is not small, the load was not the same.
        errors: What went wrong, and how often.
    """

    router: str
    load: str
    requests: int
    first_mean_s: float
    first_p50_s: float
    first_p90_s: float
    first_p99_s: float
    whole_mean_s: float
    prompt_tokens: int
    cached_tokens: int
    hit: float
    cpu_s: float
    late_p99_s: float
    errors: dict[str, int]


def row_of(router: str, load: str, answers: Sequence[Answered], cpu_s: float) -> Row:
    """
    Args:
        cpu_s: Of the router while it routed them, in all.
    """
    whole = [one for one in answers if one.error is None]
    firsts = sorted(one.first_s for one in whole if one.first_s is not None)
    errors: dict[str, int] = {}
    for one in answers:
        if one.error is not None:
            errors[one.error] = errors.get(one.error, 0) + 1
    tokens = sum(one.prompt_tokens for one in whole)
    cached = sum(one.cached_tokens for one in whole)
    return Row(
        router=router,
        load=load,
        requests=len(answers),
        first_mean_s=mean(firsts) if firsts else _NONE,
        first_p50_s=quantile(firsts, 0.5, of_none=_NONE),
        first_p90_s=quantile(firsts, 0.9, of_none=_NONE),
        first_p99_s=quantile(firsts, 0.99, of_none=_NONE),
        whole_mean_s=mean(one.last_s or 0.0 for one in whole) if whole else _NONE,
        prompt_tokens=tokens,
        cached_tokens=cached,
        hit=cached / tokens if tokens else 0.0,
        cpu_s=cpu_s / len(answers),
        late_p99_s=quantile(sorted(one.late_s for one in answers), 0.99),
        errors=errors,
    )


def lines_of(rows: Sequence[Row], absent: dict[str, str]) -> list[str]:
    """A table for each load, the fastest first; then who did not take part."""
    lines: list[str] = []
    for load in dict.fromkeys(row.load for row in rows):
        lines += [f"{load}: seconds to the first token"]
        of_load = sorted(
            (row for row in rows if row.load == load), key=lambda one: one.first_mean_s
        )
        lines += table(_HEADINGS, [_cells(row) for row in of_load])
        lines.append("")
    for row in rows:
        lines += [f"{row.router}, {row.load}: {n} × {what}" for what, n in row.errors.items()]
    lines += [f"{name} did not take part: {why}" for name, why in absent.items()]
    return lines


_HEADINGS = (
    "router", "mean", "p50", "p90", "p99", "whole", "hit tokens", "hit", "errors", "CPU ms",
    "late ms",
)  # fmt: skip


def _cells(row: Row) -> list[str]:
    return [
        row.router,
        *(
            f"{value:.3f}"
            for value in (row.first_mean_s, row.first_p50_s, row.first_p90_s, row.first_p99_s)
        ),
        f"{row.whole_mean_s:.2f}",
        f"{row.cached_tokens:,}",
        f"{row.hit:.1%}",
        str(sum(row.errors.values())),
        f"{row.cpu_s * 1e3:.2f}",
        f"{row.late_p99_s * 1e3:.0f}",
    ]
