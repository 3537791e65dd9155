"""How fast each replica is, learned from what its answers really took; no number is a GPU's.

Time to first token is taken as  overhead + tokens / prefill rate,  a decode step as
base + slope · running sequences: two lines, each fitted by least squares over samples that fade.
A replica is as fast as the fleet's median line says as long as its own fit is not clearly another:
else noise between equal replicas would outweigh what a warm cache saves. So is one that has no
samples yet. With none anywhere, all are as the config says: equal, and only the ratio of costs is
made up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from router.core.ids import ReplicaId

# Each new sample takes 2 % of the weight: about the last fifty count.
FADE = 0.98
# A sample further off the fit than this factor is taken as that far: a stall is not a speed.
OUTLIER_FACTOR = 4.0
# Samples before outliers are cut: the starting values may be off by any factor.
TRUSTED_SAMPLES = 8
# A fit needs arguments that differ: variance over squared mean.
SPREAD_MIN = 0.05
# Keeps a rate finite where a fit finds no slope.
SECONDS_PER_TOKEN_MIN = 1e-9
# Fits that differ by no more than this factor are taken as the same speed: equal replicas under
# load differ by that much for a while, and what seems slow gets little to show that it is not.
ALIKE_FACTOR = 2.0
# Fits are compared up to so many deviations above the mean of what was seen: where the slope shows.
FAR_DEVIATIONS = 2.0
# Samples of few tokens say little about the rate, those of many are noisy: error ∝ tokens + this.
SMALL_PROMPT_TOKENS = 64.0
# More than this many tokens a byte are not those of a text.
TOKENS_PER_BYTE_MAX = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StartingRates:
    """Believed of a replica before it or any other has been measured. Neutral, not any GPU's."""

    prefill_tokens_per_s: float = 2000.0
    overhead_s: float = 0.01
    decode_base_s: float = 0.02
    decode_slope_s: float = 0.0005


@dataclass(slots=True, kw_only=True)
class Rates:
    """One replica's speed as believed now.

    Attributes:
        prefill_s_per_token: One over the prefill rate.
        overhead_s: Time to first token of a prompt without uncached tokens.
        decode_base_s, decode_slope_s: A decode step takes base + slope · running.
    """

    prefill_s_per_token: float
    overhead_s: float
    decode_base_s: float
    decode_slope_s: float

    @property
    def prefill_tokens_per_s(self) -> float:
        return 1.0 / self.prefill_s_per_token

    def prefill_s(self, uncached_tokens: float) -> float:
        """Seconds until so many tokens are computed and the first one is answered."""
        return self.overhead_s + uncached_tokens * self.prefill_s_per_token


class FadingLine:
    """y = intercept + slope · x, both ≥ 0, over samples of fading weight."""

    __slots__ = ("intercept", "samples", "slope", "weight", "x", "xx", "xy", "y")

    def __init__(self, intercept: float, slope: float) -> None:
        self.intercept, self.slope = intercept, slope
        self.samples = 0
        self.weight = self.x = self.y = self.xx = self.xy = 0.0

    @property
    def mean_x(self) -> float:
        """Of the samples; there is one."""
        return self.x / self.weight

    @property
    def variance_x(self) -> float:
        mean_x = self.mean_x
        return max(0.0, self.xx / self.weight - mean_x * mean_x)

    def at(self, x: float) -> float:
        return self.intercept + self.slope * x

    def learn(self, x: float, y: float, weight: float) -> None:
        """Take a sample, an outlier as one that is less far off."""
        fit = self.at(x)
        if self.samples >= TRUSTED_SAMPLES and fit > 0.0:
            y = min(max(y, fit / OUTLIER_FACTOR), fit * OUTLIER_FACTOR)
        self.samples += 1
        self._add(x, y, weight)

    def _add(self, x: float, y: float, weight: float) -> None:
        self.weight = self.weight * FADE + weight
        self.x = self.x * FADE + weight * x
        self.y = self.y * FADE + weight * y
        self.xx = self.xx * FADE + weight * x * x
        self.xy = self.xy * FADE + weight * x * y
        mean_x, mean_y, variance = self.mean_x, self.y / self.weight, self.variance_x
        if variance > SPREAD_MIN * mean_x * mean_x:
            slope = (self.xy / self.weight - mean_x * mean_y) / variance
            if slope > 0.0:
                intercept = mean_y - slope * mean_x
                if intercept >= 0.0:
                    self.slope, self.intercept = slope, intercept
                elif self.xx > 0.0:  # best line through the origin
                    self.slope, self.intercept = self.xy / self.xx, 0.0
                return
        # Nothing told apart by x: keep the line's shape, move it to the mean.
        fit = self.at(mean_x)
        if fit > 0.0:
            self.slope *= mean_y / fit
            self.intercept *= mean_y / fit
        else:
            self.intercept = mean_y


class _Learned:
    """What was measured of one replica, and what is said of it."""

    __slots__ = ("decode", "prefill", "rates")

    def __init__(self, rates: Rates) -> None:
        self.rates = rates
        self.prefill = FadingLine(rates.overhead_s, rates.prefill_s_per_token)
        self.decode = FadingLine(rates.decode_base_s, rates.decode_slope_s)


class CostModel:
    """The rates of one model's replicas, its bytes per token and the length of its answers."""

    def __init__(self, start: StartingRates | None = None) -> None:
        self._start = start or StartingRates()
        self._learned: dict[ReplicaId, _Learned] = {}
        self._unpublished = 0
        # 4 bytes a token is English under a vocabulary of 32k to 128k entries.
        self._prompt_tokens, self._prompt_bytes = 1.0, 4.0
        self.bytes_per_token = 4.0
        self.output_tokens = 128.0

    def rates(self, replica: ReplicaId) -> Rates:
        """The replica's rates: one object for its life, updated in place."""
        learned = self._learned.get(replica)
        if learned is None:
            learned = self._learned[replica] = _Learned(
                Rates(
                    prefill_s_per_token=1.0 / self._start.prefill_tokens_per_s,
                    overhead_s=self._start.overhead_s,
                    decode_base_s=self._start.decode_base_s,
                    decode_slope_s=self._start.decode_slope_s,
                )
            )
            self._publish()
        return learned.rates

    def forget(self, replica: ReplicaId) -> None:
        self._learned.pop(replica, None)

    def observe_prefill(self, replica: ReplicaId, tokens: float, seconds: float) -> None:
        """A first token came `seconds` after its request was sent.

        Args:
            tokens: Uncached tokens of the request, by the answer's usage if it says, and those
                that waited before it.
        """
        if seconds <= 0.0:
            return  # the clock stood still: no news
        self.rates(replica)
        self._learned[replica].prefill.learn(tokens, seconds, (tokens + SMALL_PROMPT_TOKENS) ** -2)
        self._observed()

    def observe_decode(self, replica: ReplicaId, running: int, step_s: float) -> None:
        """A token came `step_s` after the one before it, with `running` sequences there."""
        if step_s <= 0.0:
            return
        self.rates(replica)
        self._learned[replica].decode.learn(running, step_s, 1.0)
        self._observed()

    def observe_prompt(self, prompt_bytes: int, prompt_tokens: int) -> None:
        """An answer's usage said how many tokens a prompt of this many bytes was."""
        if prompt_bytes <= 0 or not 0 < prompt_tokens <= TOKENS_PER_BYTE_MAX * prompt_bytes:
            return
        self._prompt_bytes = self._prompt_bytes * FADE + prompt_bytes
        self._prompt_tokens = self._prompt_tokens * FADE + prompt_tokens
        self.bytes_per_token = self._prompt_bytes / self._prompt_tokens

    def observe_output(self, tokens: int) -> None:
        """An answer ended after this many tokens."""
        self.output_tokens += (1.0 - FADE) * (tokens - self.output_tokens)

    def expected_output_tokens(self, tokens_max: int | None) -> float:
        """How long an answer will be: as the others were, at most what the request allows."""
        return self.output_tokens if tokens_max is None else min(self.output_tokens, tokens_max)

    def _observed(self) -> None:
        """Publish once per as many samples as there are replicas: O(1) a sample on the whole."""
        self._unpublished += 1
        if self._unpublished >= len(self._learned):
            self._publish()

    def _publish(self) -> None:
        self._unpublished = 0
        everybody = list(self._learned.values())
        prefill = _typical([one.prefill for one in everybody if one.prefill.samples])
        decode = _typical([one.decode for one in everybody if one.decode.samples])
        for one in everybody:
            if prefill is not None:
                line = prefill.instead_of(one.prefill)
                one.rates.overhead_s = line.intercept
                one.rates.prefill_s_per_token = max(line.slope, SECONDS_PER_TOKEN_MIN)
            if decode is not None:
                line = decode.instead_of(one.decode)
                one.rates.decode_base_s = line.intercept
                one.rates.decode_slope_s = line.slope

    def check(self) -> None:
        """Assert what must always hold: every rate is a positive number."""
        assert self.bytes_per_token > 0.0
        assert self.output_tokens >= 0.0
        for replica, one in self._learned.items():
            rates = one.rates
            assert 0.0 < rates.prefill_s_per_token < float("inf"), replica
            assert 0.0 <= rates.overhead_s < float("inf"), replica
            assert 0.0 <= rates.decode_base_s < float("inf"), replica
            assert 0.0 <= rates.decode_slope_s < float("inf"), replica


@dataclass(frozen=True, slots=True)
class _Typical:
    """The median line of those measured, and the median of their mean x."""

    line: FadingLine
    x: float

    def instead_of(self, own: FadingLine) -> FadingLine:
        """This line, unless `own` was measured to be another, near the usual x or near its own."""
        if not own.samples:
            return self.line
        far = own.mean_x + FAR_DEVIATIONS * own.variance_x**0.5
        compared = (self.x, own.mean_x, far)
        if all(_alike(own.at(x), self.line.at(x)) for x in compared):
            return self.line
        return own


def _typical(lines: Sequence[FadingLine]) -> _Typical | None:
    if not lines:
        return None
    middle = FadingLine(median(one.intercept for one in lines), median(one.slope for one in lines))
    return _Typical(middle, median(one.mean_x for one in lines))


def _alike(one: float, other: float) -> bool:
    return one <= other * ALIKE_FACTOR and other <= one * ALIKE_FACTOR
