"""What an answer teaches: the replica's speed, the lengths of prompts and answers, our errors."""

from router.core.answer_scan import AnswerUsage
from router.core.cost import CostModel
from router.core.fleet import Lease
from router.core.speed_learning import learn_first_token, learn_speed
from router.metrics import RouterMetrics


class AnswerLearning:
    """Takes in the usage of one model's good answers."""

    def __init__(self, model: str, cost: CostModel, metrics: RouterMetrics) -> None:
        self._model = model
        self._cost = cost
        self._metrics = metrics

    def first_token(self, lease: Lease, first_token_s: float) -> None:
        """It came so many seconds after the lease was taken."""
        learn_first_token(self._cost, lease, first_token_s)

    def answered(
        self,
        lease: Lease,
        usage: AnswerUsage,
        *,
        prompt_bytes: int,
        matched_tokens: int,
        cached_tokens: int | None,
        first_token_s: float | None,
        now: float,
    ) -> None:
        """
        Args:
            matched_tokens: Of the prompt, what we took to be cached.
            cached_tokens: What was, as far as the replica's reports can be relied on.
            first_token_s: From the lease to the first token, where that is known.
        """
        if usage.prompt_tokens is None:
            return
        replica = lease.replica.id
        labels = (self._model, replica)
        self._metrics.prompt_tokens[labels].inc(usage.prompt_tokens)
        if usage.completion_tokens is not None:
            self._metrics.completion_tokens[labels].inc(usage.completion_tokens)
        if cached_tokens is not None:
            self._compare(labels, matched_tokens, cached_tokens)
        learn_speed(
            self._cost,
            lease,
            prompt_bytes=prompt_bytes,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=cached_tokens,
            first_token_s=first_token_s,
            now=now,
        )

    def recomputed(self, tokens: int) -> None:
        """An answer computed tokens that another replica held."""
        self._metrics.regret_tokens[(self._model,)].inc(tokens)

    def _compare(self, labels: tuple[str, str], matched_tokens: int, cached_tokens: int) -> None:
        metrics = self._metrics
        metrics.matched_tokens[labels].inc(matched_tokens)
        metrics.cached_tokens[labels].inc(cached_tokens)
        error = matched_tokens - cached_tokens
        metrics.match_error_tokens[labels].inc(abs(error))
        if error > 0:
            metrics.match_overestimate_tokens[labels].inc(error)
        else:
            metrics.match_underestimate_tokens[labels].inc(-error)
