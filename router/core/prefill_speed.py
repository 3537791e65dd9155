"""How long prefills take: one line for the fleet, and how much slower or faster a replica is.

    first token = overhead + per token · (tokens + context weight · pairs),    times the pace

The line is learned from first tokens that did not wait: of whom waits, engines say only when he had
his turn, and short prompts may overtake long ones. The pace is learned from all: what a replica
computed over the time it took, in whatever order.

    lease, lease        first token   first token            first token
      |------------------------|-----------|                      |
         busy: both prompts, and a step each   idle: not counted

A replica is as fast as the fleet as long as its pace is not clearly another: equal ones shall be
equal, so that between them what is cached decides. What is clear after one sample is believed: a
slow replica is given no more that it takes long for. Beside the median of a fleet with two kinds
of replicas both are another.
"""

from dataclasses import dataclass
from math import exp2
from statistics import median

from router.core.attention import ContextWeight
from router.core.fading_line import FADE, TRUSTED_SAMPLES, FadingLine
from router.core.ids import ReplicaId

# Paces that differ by no more than this factor are taken as the same: those of equal replicas are
# within a tenth of each other, within a half where they are full. With n samples, 1 + 1/n times
# that.
ALIKE_FACTOR = 1.25
# Of the line's overhead: first tokens closer together than this come out of the same step.
SAME_STEP_SHARE = 0.125
# Keeps a rate finite where a fit finds no slope.
SECONDS_PER_TOKEN_MIN = 1e-9
# What is known of a replica counts half after so many samples of each other one, and none of it:
# who seemed slow once is tried again.
IDLE_SAMPLES = 16


@dataclass(slots=True)
class _Pace:
    """Fading sums of what one replica computed, and of the time that took.

    Attributes:
        weight: Of its samples: at most as many as there were.
        seen: How many samples of the whole fleet there were with its last one.
    """

    weight: float = 0.0
    seen: int = 0
    seconds: float = 0.0
    tokens: float = 0.0
    pairs: float = 0.0
    steps: float = 0.0
    factor: float = 1.0

    def computed(
        self, tokens: float, pairs: float, steps: int, seconds: float, kept: float
    ) -> None:
        self.weight = self.weight * kept + 1.0
        self.seconds = self.seconds * kept + seconds
        self.tokens = self.tokens * kept + tokens
        self.pairs = self.pairs * kept + pairs
        self.steps = self.steps * kept + steps

    def correct(self, tokens: float, pairs: float) -> None:
        self.tokens = max(0.0, self.tokens + tokens)
        self.pairs = max(0.0, self.pairs + pairs)


class PrefillSpeed:
    """What was learned of one model's replicas."""

    def __init__(self, overhead_s: float, s_per_token: float) -> None:
        self._line = FadingLine(overhead_s, s_per_token)
        self._context = ContextWeight()
        self._paces: dict[ReplicaId, _Pace] = {}
        self._samples = 0

    @property
    def known(self) -> bool:
        """Whether enough first tokens were seen."""
        return self._line.samples >= TRUSTED_SAMPLES

    @property
    def overhead_s(self) -> float:
        return self._line.intercept

    @property
    def s_per_token(self) -> float:
        return max(self._line.slope, SECONDS_PER_TOKEN_MIN)

    @property
    def s_per_pair(self) -> float:
        return self.s_per_token * self._context.weight

    def factor(self, replica: ReplicaId) -> float:
        """How many times as long as the fleet's typical replica it takes."""
        pace = self._paces.get(replica)
        return 1.0 if pace is None else pace.factor

    def add(self, replica: ReplicaId) -> None:
        self._paces.setdefault(replica, _Pace())

    def forget(self, replica: ReplicaId) -> None:
        self._paces.pop(replica, None)

    def first_token(self, replica: ReplicaId, tokens: float, pairs: float, seconds: float) -> None:
        """A replica with nothing else to prefill took so long for so much."""
        work = tokens + self._context.weight * pairs
        taken_s = self._line.learn(work, seconds / self.factor(replica))
        self._context.learn(tokens, pairs, taken_s)

    def computed(self, replica: ReplicaId, tokens: float, pairs: float, seconds: float) -> None:
        """So long after it began, or after the first token before, this one came."""
        steps = int(seconds > self.overhead_s * SAME_STEP_SHARE)
        pace = self._paces[replica]
        pace.computed(tokens, pairs, steps, seconds, FADE * self._remembered(pace))
        self._samples += 1
        pace.seen = self._samples

    def correct(self, replica: ReplicaId, tokens: float, pairs: float) -> None:
        """So much more, or less, was computed of late than was said."""
        self._paces[replica].correct(tokens, pairs)

    def compare(self) -> None:
        """Find out who is slower or faster than the others."""
        ratios = {}
        for replica, pace in self._paces.items():
            expected_s = pace.tokens * self.s_per_token + pace.pairs * self.s_per_pair
            expected_s += pace.steps * self.overhead_s
            if expected_s > 0.0 and pace.seconds > 0.0:
                ratios[replica] = pace.seconds / expected_s
        typical = median(ratios.values()) if ratios else 1.0
        for replica, pace in self._paces.items():
            weight = pace.weight * self._remembered(pace)
            factor = ratios.get(replica, typical) / typical
            alike = max(factor, 1.0 / factor) * weight <= ALIKE_FACTOR * (weight + 1.0)
            pace.factor = 1.0 if alike else factor

    def _remembered(self, pace: _Pace) -> float:
        """The share of what is known of it that is not too old."""
        idle = (self._samples - pace.seen) / len(self._paces)
        return exp2(-idle / IDLE_SAMPLES)
