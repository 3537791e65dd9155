"""The rate at which a fleet is full: the highest one that its best policy keeps up with.

A policy *keeps up* if over the time of the last third of the arrivals, on average, at most 3 % of
the requests that have come wait for their first token. (Of time, not of arrivals: whoever comes in
a burst sees all of it wait.) While it keeps up that share falls with time; when work comes faster
than it is done the share is the part that is not done. (Comparing the mean TTFT of thirds tells
less: of a backlog that grows steadily the last third has only 5/3 of the middle one.)
"""

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
    if not served:
        return True
    begin_s, end_s = served[len(served) * 2 // 3].arrival_s, served[-1].arrival_s
    came_s = waited_s = 0.0  # requests times seconds within the last third
    for one in served:
        # One that failed waits no longer.
        seconds = one.ended_s if one.first_token_s is None else one.first_token_s
        over_s = end_s if seconds is None else min(end_s, one.arrival_s + seconds)
        from_s = max(begin_s, one.arrival_s)
        came_s += end_s - from_s
        waited_s += max(0.0, over_s - from_s)
    return waited_s <= WAITING_SHARE_MAX * came_s


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
