"""How fast each replica is, learned from what its answers really took; no number is a GPU's.

Prefills are learned in `router.core.prefill_speed`. A decode step is taken as  base + slope ·
running sequences,  a line of each replica over samples that fade. Its steps take what the fleet's
median line says as long as its own is not clearly another. So do those of one that has no samples
yet. With none anywhere, all are as the config says: equal, and only the ratio of costs is made up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from router.core.fading_line import FADE, TRUSTED_SAMPLES, FadingLine
from router.core.ids import ReplicaId
from router.core.prefill_speed import PrefillSpeed

# Fits of decode steps that differ by no more than this factor are taken as the same speed: equal
# replicas under load differ by that much for a while.
ALIKE_FACTOR = 2.0
# Fits are compared up to so many deviations above the mean of what was seen: where the slope shows.
FAR_DEVIATIONS = 2.0
# Nothing is computed in less: the clock stood still, or what came was no answer.
COMPUTED_S_MIN = 1e-6
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
        prefill_s_per_pair: What attention to one token of context adds to that.
        overhead_s: Time to first token of a prompt without uncached tokens.
        decode_base_s, decode_slope_s: A decode step takes base + slope · running.
    """

    prefill_s_per_token: float
    prefill_s_per_pair: float
    overhead_s: float
    decode_base_s: float
    decode_slope_s: float

    @property
    def prefill_tokens_per_s(self) -> float:
        return 1.0 / self.prefill_s_per_token

    def computed_s(self, tokens: float, pairs: float) -> float:
        """Seconds it computes for so much, and nothing for others."""
        return tokens * self.prefill_s_per_token + pairs * self.prefill_s_per_pair

    def prefill_s(self, tokens: float, pairs: float) -> float:
        """Seconds until so much is computed and the first token is answered."""
        return self.overhead_s + self.computed_s(tokens, pairs)


@dataclass(slots=True)
class _Learned:
    """What was measured of one replica's decodes, and what is said of it."""

    rates: Rates
    decode: FadingLine


class CostModel:
    """The rates of one model's replicas, its bytes per token and the length of its answers."""

    def __init__(self, start: StartingRates | None = None) -> None:
        self._start = start or StartingRates()
        self._prefill = PrefillSpeed(self._start.overhead_s, 1.0 / self._start.prefill_tokens_per_s)
        self._learned: dict[ReplicaId, _Learned] = {}
        self._observations = self._unpublished = 0
        # 4 bytes a token is English under a vocabulary of 32k to 128k entries.
        self._prompt_tokens, self._prompt_bytes = 1.0, 4.0
        self.bytes_per_token = 4.0
        self.output_tokens = 128.0

    def rates(self, replica: ReplicaId) -> Rates:
        """The replica's rates: one object for its life, updated in place."""
        learned = self._learned.get(replica)
        if learned is None:
            start = self._start
            rates = Rates(
                prefill_s_per_token=1.0 / start.prefill_tokens_per_s,
                prefill_s_per_pair=0.0,
                overhead_s=start.overhead_s,
                decode_base_s=start.decode_base_s,
                decode_slope_s=start.decode_slope_s,
            )
            decode = FadingLine(start.decode_base_s, start.decode_slope_s)
            learned = self._learned[replica] = _Learned(rates, decode)
            self._prefill.add(replica)
            self._publish()
        return learned.rates

    def forget(self, replica: ReplicaId) -> None:
        self._learned.pop(replica, None)
        self._prefill.forget(replica)

    @property
    def knows_prefill(self) -> bool:
        """Whether enough first tokens were seen."""
        return self._prefill.known

    def observe_first_token(
        self, replica: ReplicaId, tokens: float, pairs: float, seconds: float
    ) -> None:
        """A first token came `seconds` after its request was sent, which had not to wait.

        Args:
            tokens, pairs: What was computed for it.
        """
        if seconds < COMPUTED_S_MIN:
            return
        self.rates(replica)
        self._prefill.first_token(replica, tokens, pairs, seconds)
        self._observed()

    def observe_computed(
        self, replica: ReplicaId, tokens: float, pairs: float, seconds: float
    ) -> None:
        """A first token came `seconds` after the one before, or after the first prompt."""
        if seconds < 0.0:
            return
        self.rates(replica)
        self._prefill.computed(replica, tokens, pairs, seconds)
        self._observed()

    def correct_computed(self, replica: ReplicaId, tokens: float, pairs: float) -> None:
        """For a first token observed lately so much more, or less, was computed than was said."""
        if replica in self._learned:
            self._prefill.correct(replica, tokens, pairs)

    def observe_decode(self, replica: ReplicaId, running: int, step_s: float) -> None:
        """A token came `step_s` after the one before it, with `running` sequences there."""
        if step_s < COMPUTED_S_MIN:
            return
        self.rates(replica)
        self._learned[replica].decode.learn(running, step_s)
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

    def request_tokens(self, prompt_bytes: int, output_tokens_max: int | None) -> int:
        """What a request will occupy in a KV cache, about: at least 1."""
        prompt_tokens = prompt_bytes / self.bytes_per_token
        return int(prompt_tokens + self.expected_output_tokens(output_tokens_max)) or 1

    def _observed(self) -> None:
        """Publish once per as many samples as there are replicas, the first ones sooner: O(1) a
        sample on the whole."""
        self._observations += 1
        self._unpublished += 1
        if self._unpublished >= min(len(self._learned), 1 + self._observations // TRUSTED_SAMPLES):
            self._publish()

    def _publish(self) -> None:
        self._unpublished = 0
        prefill = self._prefill
        prefill.compare()
        decode = _typical([one.decode for one in self._learned.values() if one.decode.samples])
        for replica, one in self._learned.items():
            rates, factor = one.rates, prefill.factor(replica)
            rates.overhead_s = prefill.overhead_s * factor
            rates.prefill_s_per_token = prefill.s_per_token * factor
            rates.prefill_s_per_pair = prefill.s_per_pair * factor
            if decode is not None:
                line = decode.instead_of(one.decode)
                rates.decode_base_s = line.intercept
                rates.decode_slope_s = line.slope

    def check(self) -> None:
        """Assert what must always hold: every rate is a positive number."""
        assert self.bytes_per_token > 0.0
        assert self.output_tokens >= 0.0
        for replica, one in self._learned.items():
            rates = one.rates
            assert 0.0 < rates.prefill_s_per_token < float("inf"), replica
            assert 0.0 <= rates.prefill_s_per_pair < float("inf"), replica
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
