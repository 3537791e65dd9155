"""The rate at which a fleet is full: the highest one that its best policy keeps up with.

A policy *keeps up* if over the last third of the arrivals, on average, at most 3 % of the requests
that have come wait for their first token. While it keeps up that share falls with time; when work
comes faster than it is done the share is the part that is not done. (Comparing the mean TTFT of
thirds tells less: of a backlog that grows steadily the last third has only 5/3 of the middle one.)
"""

from bisect import bisect_right
from collections.abc import Callable

from loadtests.sim.world import Run

WAITING_SHARE_MAX = 0.03
_BRACKET = 1.6
_BRACKETS_MAX = 16
_CLOSE = 1.05


class Unbounded(ValueError):
    """Every rate that was tried was kept up with, or none."""


def keeps_up(run: Run) -> bool:
    """Whether this run's policy did."""
    served = sorted(run.served, key=lambda one: one.arrival_s)
    # One that failed waits no longer.
    over = sorted(
        one.arrival_s + seconds
        for one in served
        if (seconds := one.ended_s if one.first_token_s is None else one.first_token_s) is not None
    )
    last = range(len(served) * 2 // 3, len(served))
    # Of those that came before each: whoever has just come may wait.
    shares = [
        1 - bisect_right(over, served[number].arrival_s) / number for number in last if number > 0
    ]
    return not shares or sum(shares) / len(shares) <= WAITING_SHARE_MAX


def highest_rate(kept: Callable[[float], bool], start: float) -> float:
    """The highest rate found to be kept up with, to 5 %: brackets by steps, then halves.

    Args:
        kept: Whether a rate is; taken to be true up to some rate.
        start: Where to begin.

    Raises:
        Unbounded: `kept` answers the same from start · 1.6^-16 to start · 1.6^16.
    """
    first = kept(start)
    low = high = start
    for _ in range(_BRACKETS_MAX):
        if first:
            low, high = high, high * _BRACKET
            if not kept(high):
                break
        else:
            low, high = low / _BRACKET, low
            if kept(low):
                break
    else:
        raise Unbounded(f"no end between {min(start, low):.3g} and {max(start, high):.3g}/s")
    while high / low > _CLOSE:
        middle = (low * high) ** 0.5
        if kept(middle):
            low = middle
        else:
            high = middle
    return low
