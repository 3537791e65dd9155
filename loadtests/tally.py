"""What a load test adds up over its answers: hit rate, times to first token, replicas, errors."""

from collections import Counter
from collections.abc import Sequence

from cli.answer import Answer
from cli.terminal import count, milliseconds, percent, table
from loadtests.quantiles import quantile

# From here on a prompt counts as warm. Not 0: a template's first block is nearly always cached.
WARM_SHARE = 0.5


class Tally:
    """Counts and times of one load test. Times are kept whole: 8 bytes an answer."""

    def __init__(self) -> None:
        self.answers = 0
        self.failures: Counter[str] = Counter()
        self.replicas: Counter[str] = Counter()
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.predictions = 0
        self.exact_predictions = 0
        self._cold_ttft_s: list[float] = []
        self._warm_ttft_s: list[float] = []
        self._untold_ttft_s: list[float] = []

    def add(self, answer: Answer) -> None:
        self.answers += 1
        self.replicas[answer.replica or "not told"] += 1
        self.prompt_tokens += answer.prompt_tokens or 0
        self.cached_tokens += answer.cached_tokens or 0
        self.completion_tokens += answer.completion_tokens or 0
        if answer.matched_tokens is not None and answer.cached_tokens is not None:
            self.predictions += 1
            self.exact_predictions += answer.matched_tokens == answer.cached_tokens
        share = answer.cached_share
        if share is None:
            self._untold_ttft_s.append(answer.ttft_s)
        else:
            times = self._warm_ttft_s if share >= WARM_SHARE else self._cold_ttft_s
            times.append(answer.ttft_s)

    def fail(self, reason: str) -> None:
        self.failures[reason] += 1

    @property
    def passed(self) -> bool:
        """Something was answered and nothing failed."""
        return self.answers > 0 and not self.failures

    def lines(self, wall_s: float) -> list[str]:
        """The summary of a test that took `wall_s` seconds."""
        failed = sum(self.failures.values())
        hit_rate = self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None
        rate = f" ({self.completion_tokens / wall_s:,.1f} a second)" if wall_s > 0 else ""
        lines = [
            f"{self.answers:,} answers, {failed:,} failures in {wall_s:,.0f} s",
            f"hit rate: {percent(hit_rate)} of {self.prompt_tokens:,} prompt tokens",
            f"generated: {self.completion_tokens:,} tokens{rate}",
        ]
        if self.predictions:
            share = percent(self.exact_predictions / self.predictions)
            lines.append(
                f"cached tokens predicted exactly: {share} of {self.predictions:,} answers"
            )
        replicas = ", ".join(f"{name} {number:,}" for name, number in sorted(self.replicas.items()))
        lines += [f"replicas: {replicas or '-'}", ""]
        kinds = (
            (f"warm (at least {percent(WARM_SHARE)} cached)", self._warm_ttft_s),
            ("cold", self._cold_ttft_s),
            ("cached share not told", self._untold_ttft_s),
        )
        rows = [_row(kind, sorted(times)) for kind, times in kinds if times]
        lines += table(["TTFT ms", "answers", "p50", "p99"], rows)
        lines += [f"failed {number:,} times: {why}" for why, number in self.failures.most_common()]
        return lines

    def check(self) -> None:
        timed = len(self._cold_ttft_s) + len(self._warm_ttft_s) + len(self._untold_ttft_s)
        assert timed == self.answers == self.replicas.total()
        assert 0 <= self.cached_tokens <= self.prompt_tokens
        assert self.exact_predictions <= self.predictions <= self.answers


def _row(kind: str, sorted_s: Sequence[float]) -> list[str]:
    p50, p99 = (milliseconds(quantile(sorted_s, share)) for share in (0.5, 0.99))
    return [kind, count(len(sorted_s)), p50, p99]
