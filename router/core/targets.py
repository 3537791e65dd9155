"""What a target for the first token changes: the worth of a request's own seconds, and its chance.

    expected      0.2      0.4      0.8 s         the time to first token comes out around what was
                 ──┴────────┴────────┴──▶         expected, by a factor that is learned: its
    chance late   2 %      50 %     98 %          logarithm has a mean and a variance
                           ▲ target 0.4

A second of who needs his first token within half a second is worth more to him than one of who can
wait for a minute: as much more as his target is shorter than those of others (of late, on average
of their inverses), within bounds.
"""

import math
from dataclasses import dataclass

# Each new one takes 2 % of the weight: about the last fifty count.
FADE = 0.98
# A class's numbers cannot make the others' time worthless.
WEIGHT_MAX = 10.0
# Of the logarithm: below a tenth either way nobody knows.
DEVIATION_MIN = 0.1
# Until something was seen, a factor of e either way.
DEVIATION_START = 1.0
# Less is late already, or a clock that tells no difference.
SECONDS_MIN = 1e-3


@dataclass(slots=True)
class Targets:
    """What was learned of targets and first tokens of one model."""

    _inverse_s: float = 0.0
    _log_error: float = 0.0
    _log_variance: float = DEVIATION_START * DEVIATION_START

    def came(self, target_s: float) -> None:
        """A request with this target came."""
        inverse_s = 1.0 / max(target_s, SECONDS_MIN)
        if not self._inverse_s:
            self._inverse_s = inverse_s
        self._inverse_s += (1.0 - FADE) * (inverse_s - self._inverse_s)

    def first_token(self, expected_s: float, after_s: float) -> None:
        """A first token came so long after its request, which was expected."""
        ratio = max(after_s, SECONDS_MIN) / max(expected_s, SECONDS_MIN)
        error = math.log(ratio) - self._log_error
        self._log_error += (1.0 - FADE) * error
        self._log_variance += (1.0 - FADE) * (error * error - self._log_variance)

    def weight(self, target_s: float) -> float:
        """What a second of its own is worth to who has this target, in seconds of others."""
        if not self._inverse_s:
            return 1.0
        weight = 1.0 / (max(target_s, SECONDS_MIN) * self._inverse_s)
        return min(WEIGHT_MAX, max(1.0 / WEIGHT_MAX, weight))

    def chance_late(self, expected_s: float, target_s: float) -> float:
        """That a first token expected after so long comes later than its target."""
        late = math.log(max(target_s, SECONDS_MIN) / max(expected_s, SECONDS_MIN))
        deviation = max(DEVIATION_MIN, math.sqrt(self._log_variance))
        return 0.5 * math.erfc((late - self._log_error) / (deviation * math.sqrt(2.0)))

    def check(self) -> None:
        """Assert what must always hold."""
        assert 0.0 <= self._inverse_s <= 1.0 / SECONDS_MIN
        assert math.isfinite(self._log_error)
        assert 0.0 <= self._log_variance < math.inf
