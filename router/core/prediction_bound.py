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

    def __init__(self, capacity_tokens: int) -> None:
        self._capacity_tokens = capacity_tokens
        self._predictions: deque[tuple[Prediction, int]] = deque()
        self._tokens = 0

    def add(self, prediction: Prediction, uncached_tokens: int) -> list[Prediction]:
        """Takes note of a prediction; those to drop for it, as the replica evicts its oldest.

        Args:
            uncached_tokens: Of its prompt, the tokens that were not predicted before.
        """
        tokens = max(uncached_tokens, _TOKENS_MIN)
        self._predictions.append((prediction, tokens))
        self._tokens += tokens
        evicted: list[Prediction] = []
        while self._predictions:
            oldest, its_tokens = self._predictions[0]
            if oldest.live and self._tokens <= self._capacity_tokens:
                break
            self._predictions.popleft()
            self._tokens -= its_tokens
            if oldest.live:
                evicted.append(oldest)
        return evicted

    def check(self) -> None:
        assert self._tokens == sum(tokens for _, tokens in self._predictions)
        assert self._tokens <= self._capacity_tokens
