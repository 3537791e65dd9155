"""How far what a replica's events said is to be believed: 0 to 1, from how its stream goes.

    trust = following · freshness · completeness

    following      1 while the stream is followed. From the moment it is not, what was known is
                   kept, and gets older: UNFOLLOWED_TRUST · 2^(-t / UNFOLLOWED_HALF_LIFE_S), as the
                   replica evicts what it held then. Never followed: 0.
    freshness      1 / (1 + lag / LAG_HALF_S), for the lag beyond LAG_FREE_S
    completeness   1 / (1 + missing / MISSING_HALF_BATCHES), for batches known to be missing

The lag of a batch is the time from its making to its use: `now - ts`, if both clocks agreed. They
need not: the replica's may be hours off, and `now` is no wall clock at all. So the smallest
difference of the last minutes is taken as what the clocks differ by (plus the shortest way there
is), and the lag is how much longer a batch took than that one.

    now - ts    5000.01   5000.02   5003.51   5000.01
    lag            0.01*     0.01      3.50      0       * 0 when it came: it was the first

A lag that never changes is therefore not seen, nor is a way that is long for all batches; what a
stream in trouble does (fall behind, stop, catch up) is. A replica that says nothing because nothing
changes is not stale: the lag of its last batch is forgotten as time passes, half of it each
LAG_HALF_LIFE_S.
"""

from math import inf, isfinite

# What it held a moment ago it mostly holds still, and no belief at all would scatter every
# conversation over the fleet. But it holds less of it by the minute.
UNFOLLOWED_TRUST = 0.5
UNFOLLOWED_HALF_LIFE_S = 30.0
# A cache under load turns over in minutes: ten seconds late, some of what is believed is gone.
LAG_FREE_S = 0.1
LAG_HALF_S = 10.0
LAG_HALF_LIFE_S = 1.0
# A batch is what one engine step changed: a few blocks of thousands.
MISSING_HALF_BATCHES = 100
# The smallest difference is looked for in so much of the past, at least, and twice as much at most.
OFFSET_WINDOW_S = 300.0
# Time stamps of one stream ascend. By more than this they only go back when a clock was set.
CLOCK_SET_BACK_S = 1.0


class Staleness:
    """Of one cache's events. Time is an argument: any clock that never goes back, in seconds."""

    def __init__(self) -> None:
        self.lag_s: float | None = None  # of the last batch
        self.missing_batches = 0
        self._applied_at = -inf
        self._unfollowed_since: float | None = None
        self._followed_before = False
        self._last_ts = -inf
        self._window_from = -inf
        self._smallest = inf  # now - ts, in this window and in the one before
        self._smallest_before = inf

    def applied(self, ts: float, now: float) -> None:
        """A live batch was applied. Not for replayed ones: those are old by nature.

        Args:
            ts: When it was made, by the replica's clock.
        """
        if not isfinite(ts):
            return
        difference = now - ts
        if ts < self._last_ts - CLOCK_SET_BACK_S:
            self._smallest = self._smallest_before = inf
        if now - self._window_from >= OFFSET_WINDOW_S:
            recent = now - self._window_from < 2 * OFFSET_WINDOW_S
            self._smallest_before = self._smallest if recent else inf
            self._smallest = inf
            self._window_from = now
        self._last_ts = ts
        self._smallest = min(self._smallest, difference)
        self.lag_s = difference - min(self._smallest, self._smallest_before)
        self._applied_at = now

    def missing(self, batches: int) -> None:
        """So many batches are known of and not applied; 0 once they are."""
        self.missing_batches = batches

    def followed(self) -> None:
        """All that the replica holds is known, as far as it can tell."""
        self._followed_before = True
        self._unfollowed_since = None
        self.missing_batches = 0

    def unfollowed(self, now: float) -> None:
        """What changes is not heard of any more, or makes no sense."""
        if self._followed_before and self._unfollowed_since is None:
            self._unfollowed_since = now

    def forgotten(self) -> None:
        """What was known has been dropped: there is nothing left to believe."""
        self._followed_before = False
        self._unfollowed_since = None

    def trust(self, now: float, *, following: bool) -> float:
        """0 to 1; see the top.

        Args:
            following: Whether the stream is followed now.
        """
        if following:
            trust = 1.0
        elif self._unfollowed_since is None:
            return 0.0
        else:
            since_s = max(0.0, now - self._unfollowed_since)
            trust = UNFOLLOWED_TRUST * 2.0 ** (-since_s / UNFOLLOWED_HALF_LIFE_S)
        if self.lag_s is not None:
            idle_s = max(0.0, now - self._applied_at)
            lag_s = self.lag_s * 2.0 ** (-idle_s / LAG_HALF_LIFE_S)
            trust /= 1.0 + max(0.0, lag_s - LAG_FREE_S) / LAG_HALF_S
        return trust / (1.0 + self.missing_batches / MISSING_HALF_BATCHES)

    def check(self) -> None:
        assert self.missing_batches >= 0
        assert self.lag_s is None or self.lag_s >= 0
        assert self._followed_before or self._unfollowed_since is None
