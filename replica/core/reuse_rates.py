"""How soon blocks are used again, learned: by how often they were, and by how long ago.

Time is counted in blocks stored: a cache of C blocks turns over in C of them. A use of a block
begins a wait. It ends with the next use, or is given up unused; waits of the same class are alike:

    class 0   blocks nobody has reused yet      class 2   reused 2 or 3 times
    class 1   reused once                       class 3   4 to 7 times      class 4   8 and more

Of each class the hazard is known by age: of so many blocks that have waited so long, how many are
used within the next while. Waits that have not ended count with the age they have reached (as in
Kaplan & Meier 1958, doi:10.2307/2281868), else what returns soon would hide what never returns.
What a block that has waited for `age` is worth keeping is then

    worth(age) = max over Δ of   P(used within Δ | waited age) / E[time it is kept for that]

the most uses for each unit of memory that keeping it can bring: Gittins's index (Gittins 1979,
doi:10.1111/j.2517-6161.1979.tb01068.x) of the bet that it comes back. A hazard that first rises
(people think before they answer) is worth waiting for.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable

CLASSES = 5

_BINS_A_DOUBLING = 2
_AGE_MIN, _AGE_MAX = 1 / 64, 8.0  # in turnovers of the cache
# Of what was counted, so much stays with each turnover.
_KEPT = 2 / 3
# Before anything is known a block's hazard is 0.1 / age: the longer ago, the less likely, and the
# oldest goes first. This counts as one block that was watched for as long as it is old.
_PRIOR_USES = 0.1


def class_of(reuses: int) -> int:
    return min(reuses.bit_length(), CLASSES - 1)


class ReuseRates:
    """Counts of waits that ended, and the worth that follows from them."""

    def __init__(self, blocks: int) -> None:
        """
        Args:
            blocks: Of the cache: its turnover is the scale of all ages.
        """
        self._turnover = blocks
        self._edges: list[float] = []
        edge = max(1.0, blocks * _AGE_MIN)
        while edge < max(2.0, blocks * _AGE_MAX):
            self._edges.append(edge)
            edge *= 2 ** (1 / _BINS_A_DOUBLING)
        starts = [0.0, *self._edges]
        ends = [*self._edges, 2 * self._edges[-1]]
        self._widths = [end - start for start, end in zip(starts, ends, strict=True)]
        self._ages = [(start + end) / 2 for start, end in zip(starts, ends, strict=True)]
        # [class][age bin]
        self._used = [[0.0] * len(starts) for _ in range(CLASSES)]
        self._given_up = [[0.0] * len(starts) for _ in range(CLASSES)]
        self._worth: list[list[float]] = []
        self.learn([], 0)

    def used(self, of_class: int, age: int) -> None:
        """A wait ended with a use."""
        self._used[of_class][bisect_right(self._edges, age)] += 1

    def given_up(self, of_class: int, age: int) -> None:
        """A wait is watched no longer."""
        self._given_up[of_class][bisect_right(self._edges, age)] += 1

    def worth(self, of_class: int, age: int) -> float:
        """Uses for each block and unit of time, as it was last learned."""
        return self._worth[of_class][bisect_right(self._edges, age)]

    def learn(self, waiting: Iterable[tuple[int, int, int]], time: int) -> None:
        """Works out what blocks are worth from now on, and lets what was counted fade.

        Args:
            waiting: Waits that have not ended: (class, age, how many like it).
            time: Since it last did.
        """
        ended = [
            [used + lost for used, lost in zip(*both, strict=True)]
            for both in zip(self._used, self._given_up, strict=True)
        ]
        for of_class, age, count in waiting:
            ended[of_class][bisect_right(self._edges, age)] += count
        self._worth = [
            self._worths(self._hazards(*both)) for both in zip(self._used, ended, strict=True)
        ]
        kept = _KEPT ** (time / self._turnover)
        for counts in (*self._used, *self._given_up):
            counts[:] = [kept * count for count in counts]

    def _hazards(self, used: list[float], ended: list[float]) -> list[float]:
        """Uses for each block and unit of time, by age bin."""
        hazards = []
        waiting = sum(ended)
        for uses, ends, width, age in zip(used, ended, self._widths, self._ages, strict=True):
            time = (waiting - ends / 2) * width
            hazards.append((uses + _PRIOR_USES) / (time + age))
            waiting -= ends
        return hazards

    def _worths(self, hazards: list[float]) -> list[float]:
        """From the last bin back: a bin's bet goes on through what follows while that is better."""
        worths = []
        # What later bins have merged to: uses, time kept and P(unused) for a block that gets there.
        later: list[tuple[float, float, float]] = []
        for rate, width in zip(reversed(hazards), reversed(self._widths), strict=True):
            left = math.exp(-rate * width)
            uses, time = 1 - left, (1 - left) / rate
            while later and later[-1][0] * time > uses * later[-1][1]:
                more_uses, more_time, more_left = later.pop()
                uses, time = uses + left * more_uses, time + left * more_time
                left *= more_left
            later.append((uses, time, left))
            worths.append(uses / time)
        return worths[::-1]

    def check(self) -> None:
        for counts in (*self._used, *self._given_up, *self._worth):
            assert len(counts) == len(self._widths)
            assert all(count >= 0 for count in counts)
