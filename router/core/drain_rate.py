"""How fast work leaves while other work waits: what tells a refused client when to come back."""

from math import exp

# What was seen so long ago weighs a third of what is seen now.
_MEMORY_S = 10.0


class DrainRate:
    """Tokens a second, measured only while something waits: else the clients set the pace."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._at: float | None = None

    def start(self, now: float) -> None:
        """Something waits from now on."""
        if self._at is None:
            self._at = now

    def stop(self, now: float) -> None:
        """Nothing waits any more."""
        self._settle(now)
        self._at = None

    def freed(self, tokens: int, now: float) -> None:
        """A request has ended that occupied so many. Counts only while something waits."""
        if self._at is None:
            return
        self._settle(now)
        self._tokens += tokens

    def seconds_for(self, tokens: int, now: float) -> float | None:
        """How long until so many have left; None while nothing has been seen leaving."""
        self._settle(now)
        if self._tokens <= 0.0 or self._seconds <= 0.0:
            return None
        return tokens * self._seconds / self._tokens

    def _settle(self, now: float) -> None:
        """Lets what was seen before fade over the time since."""
        if self._at is None or now <= self._at:
            return
        elapsed_s = now - self._at
        self._at = now
        fade = exp(-elapsed_s / _MEMORY_S)
        self._tokens *= fade
        self._seconds = self._seconds * fade + elapsed_s

    def check(self) -> None:
        assert self._tokens >= 0.0
        assert self._seconds >= 0.0
