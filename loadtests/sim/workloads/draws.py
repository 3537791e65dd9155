"""What workloads draw: lengths and waits (log-normal), turns (geometric), which one (Zipf)."""

import math
from collections.abc import Sequence
from itertools import accumulate
from random import Random
from typing import Generic, TypeVar

from loadtests.workloads import zipf_weights

T = TypeVar("T")

LENGTH_SIGMA = 0.8
"""Of the logarithm: nine lengths of ten are within a factor of 3.7 of the median."""

_LENGTH_FACTOR_MAX = 20


def length(rng: Random, median_tokens: float) -> int:
    """Log-normal, from 1 to 20 medians, in tokens."""
    tokens = rng.lognormvariate(math.log(median_tokens), LENGTH_SIGMA)
    return max(1, min(round(tokens), round(_LENGTH_FACTOR_MAX * median_tokens)))


def length_mean(median_tokens: float) -> float:
    """Of `length`, leaving the bounds out of account: they move it by less than 1 %."""
    return median_tokens * math.exp(LENGTH_SIGMA**2 / 2)


def wait(rng: Random, median_s: float, sigma: float) -> float:
    """Log-normal, in seconds; 0 for a median of 0."""
    return rng.lognormvariate(math.log(median_s), sigma) if median_s > 0 else 0.0


def wait_mean(median_s: float, sigma: float) -> float:
    return median_s * math.exp(sigma**2 / 2)


def geometric(rng: Random, mean: float) -> int:
    """1, 2, …: after each there is another with the same probability, 1 - 1 / mean."""
    assert mean >= 1
    if mean == 1:
        return 1
    return 1 + int(math.log(1 - rng.random()) / math.log1p(-1 / mean))


class Popular(Generic[T]):
    """Some things, the k-th of which is chosen with a probability proportional to k^-exponent."""

    def __init__(self, things: Sequence[T], exponent: float) -> None:
        assert things
        self._things = things
        self._up_to = list(accumulate(zipf_weights(len(things), exponent)))

    def choose(self, rng: Random) -> T:
        return rng.choices(self._things, cum_weights=self._up_to)[0]
