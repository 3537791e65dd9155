"""The quantile that every benchmark and report means: nearest rank, never between two values."""

from collections.abc import Sequence


def quantile(ascending: Sequence[float], share: float, *, of_none: float = 0.0) -> float:
    """The smallest value that at least `share` of the values do not exceed.

    Args:
        ascending: The values, sorted.
        share: 0 to 1.
        of_none: What it is where there are no values.
    """
    assert 0 <= share <= 1
    if not ascending:
        return of_none
    rank = -int(-share * len(ascending) // 1)
    return ascending[max(rank, 1) - 1]
