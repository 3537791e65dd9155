"""How fast requests come to a replica, and how much work they bring, as of late.

    backlog b      |=========|
    work w                   |####|
    the others        x    x    x    x    x     who come until the backlog is gone: w later, each

Work that is put at the end of a backlog delays those who come while the backlog lasts, and while
the work itself is done those who come meanwhile, by half of it on average. While a replica is busy
with what comes anew for a share ρ of its time, a backlog lasts 1 / (1 - ρ) times as long. So with
λ requests a second, work w costs the others

    λ / (1 - ρ) · (b · w + w² / 2)    seconds

Source: the busy period of an M/G/1 queue (Kleinrock, Queueing Systems I, 1975, §5.8 to 5.9).
"""

from collections.abc import Sequence
from dataclasses import dataclass

# What happened so long ago counts half.
MEMORY_S = 20.0
# A rate is of so long at least: ten requests in a millisecond are no ten thousand a second.
SECONDS_MIN = 5.0
# Near saturation the formula goes to infinity, and it holds only if the load stays as it is.
STRETCH_MAX = 5.0
# Reckoned anew when something came, and at least so often: every choice asks every replica.
REFRESH_S = 1.0
# How far what comes to a replica is taken to be what comes to all: its own rate alone is noise, in
# which long prompts choose by who had few requests of late; the fleet's alone is no news of who
# has to bear a hot prefix.
FLEET_SHARE = 0.2


@dataclass(slots=True)
class Demand:
    """Fading sums of what came, and over what time."""

    _since: float | None = None
    _seconds: float = 0.0
    _requests: float = 0.0
    _work_s: float = 0.0
    _told: float = 0.0
    _told_until: float = 0.0

    def came(self, requests: float, work_s: float, now: float) -> None:
        """So many requests came, and with them so many seconds of work for one replica."""
        self._fade(now)
        self._requests += requests
        self._work_s += work_s
        self._told_until = now

    def delayed_per_s2(self, now: float) -> float:
        """λ / (1 - ρ): seconds the others lose, for each second of work behind a backlog of one."""
        if now >= self._told_until and self._since is not None:
            self._fade(now)
            seconds = max(self._seconds, SECONDS_MIN)
            idle = 1.0 - self._work_s / seconds
            stretch = 1.0 / idle if idle * STRETCH_MAX > 1.0 else STRETCH_MAX
            self._told = self._requests / seconds * stretch
            self._told_until = now + REFRESH_S
        return self._told

    def _fade(self, now: float) -> None:
        passed_s = 0.0 if self._since is None else now - self._since
        if passed_s < 0.0:
            return  # the clock of somebody else: no news
        self._since = now
        kept = 2.0 ** (-passed_s / MEMORY_S)
        self._seconds = self._seconds * kept + passed_s
        self._requests *= kept
        self._work_s *= kept

    def check(self) -> None:
        """Assert what must always hold."""
        assert self._seconds >= 0.0
        assert self._requests >= 0.0
        assert self._work_s >= 0.0


def delays_per_s2(demands: Sequence[Demand], now: float) -> tuple[list[float], float]:
    """`delayed_per_s2` of each replica of a fleet, in part the fleet's mean; and that mean."""
    own = [one.delayed_per_s2(now) for one in demands]
    mean = sum(own) / len(own)
    return [one + (mean - one) * FLEET_SHARE for one in own], mean
