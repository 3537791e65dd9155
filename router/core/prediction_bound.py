"""How much may be predicted of a replica that reports no events: what its cache can hold."""

from collections import deque

from router.core.marks import Prediction

# What a request adds to a cache at the least, so that repeats of one prompt are bounded too.
_TOKENS_MIN = 16


class PredictionBound:
    """One replica's predictions, oldest first, and the tokens that each has added.

    Every request makes a new prediction of its whole prompt, so that dropping the oldest is LRU:
    of its path, what was used again since is predicted by a later one.
    """

    def __init__(self, capacity_tokens: int, ttl_s: float) -> None:
        """
        Args:
            ttl_s: How long a prediction is believed if it is not pushed out before.
        """
        self._capacity_tokens = capacity_tokens
        self._ttl_s = ttl_s
        # (prediction, tokens, when its time is over): all live equally long, so oldest is first.
        self._predictions: deque[tuple[Prediction, int, float]] = deque()
        self._tokens = 0

    def add(self, prediction: Prediction, uncached_tokens: int, now: float) -> list[Prediction]:
        """Takes note of a prediction; those to drop for it, as the replica evicts its oldest.

        Args:
            uncached_tokens: Of its prompt, the tokens that were not predicted before.
        """
        tokens = max(uncached_tokens, _TOKENS_MIN)
        self._predictions.append((prediction, tokens, now + self._ttl_s))
        self._tokens += tokens
        return self.expire(now)

    def expire(self, now: float) -> list[Prediction]:
        """Those to drop because their time is over or the cache is full."""
        expired: list[Prediction] = []
        while self._predictions:
            oldest, tokens, expires_at = self._predictions[0]
            if oldest.live and self._tokens <= self._capacity_tokens and expires_at > now:
                break
            self._predictions.popleft()
            self._tokens -= tokens
            if oldest.live:
                expired.append(oldest)
        return expired

    def check(self) -> None:
        assert self._tokens == sum(tokens for _, tokens, _ in self._predictions)
        assert self._tokens <= self._capacity_tokens
