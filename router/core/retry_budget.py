"""Retries as a share of traffic, so that a fleet in trouble is not buried under repeated requests.

Source: tower `retry/budget` (Finagle's RetryBudget): each request deposits a share of a retry,
a small rate is added so that quiet routers may retry too, and what is unused fades.
"""

_MEMORY_S = 10.0
# Fading at each request would cost more than it tells.
_SETTLED_EVERY_S = 0.1


class RetryBudget:
    """A balance of retries. Time is the caller's, in seconds."""

    def __init__(self, *, ratio: float, min_per_s: float, now: float) -> None:
        """
        Args:
            ratio: Retries allowed per request, 0 to 1.
            min_per_s: Retries allowed a second whatever the traffic.
        """
        self._ratio = ratio
        self._min_per_s = min_per_s
        self._balance = min_per_s * _MEMORY_S
        self._at = now

    def request(self, now: float) -> None:
        """A request has come: it pays for a share of a retry."""
        if now - self._at >= _SETTLED_EVERY_S:
            self._settle(now)
        self._balance += self._ratio

    def affords_retry(self, now: float) -> bool:
        self._settle(now)
        return self._balance >= 1.0

    def retry(self) -> None:
        """A retry is made. Only after `affords_retry`, by whose reckoning it is paid for: the
        moment that has passed since must not make it unaffordable."""
        assert self._balance >= 1.0, "a retry was made that the budget does not afford"
        self._balance -= 1.0

    def _settle(self, now: float) -> None:
        """Fades the balance towards what the minimum rate alone keeps up."""
        elapsed_s = max(0.0, now - self._at)
        self._at = max(self._at, now)
        floor = self._min_per_s * _MEMORY_S
        fade = min(1.0, elapsed_s / _MEMORY_S)
        self._balance += (floor - self._balance) * fade

    def check(self) -> None:
        assert self._balance >= 0.0
