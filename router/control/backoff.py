"""Waiting longer after each failure, with jitter so that many waiters do not wake together."""

import random


class Backoff:
    """Doubling waits between `first_s` and `most_s`, each shortened at random by up to half."""

    def __init__(self, *, first_s: float, most_s: float, rng: random.Random | None = None) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._rng = rng or random.Random()
        self._next_s = first_s

    def next_s(self) -> float:
        wait_s = self._next_s * self._rng.uniform(0.5, 1.0)
        self._next_s = min(self._next_s * 2, self._most_s)
        return wait_s

    def reset(self) -> None:
        self._next_s = self._first_s
