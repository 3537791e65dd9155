"""What an answer teaches: the replica's speed, the lengths of prompts and answers, our errors."""

from router.core.answer_scan import AnswerUsage
from router.core.cost import CostModel
from router.core.fleet import Lease
from router.metrics import RouterMetrics


class AnswerLearning:
    """Takes in the usage of one model's good answers."""

    def __init__(self, model: str, cost: CostModel, metrics: RouterMetrics) -> None:
        self._model = model
        self._cost = cost
        self._metrics = metrics

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
        self._cost.observe_prompt(prompt_bytes, usage.prompt_tokens)
        if usage.completion_tokens is not None:
            self._metrics.completion_tokens[labels].inc(usage.completion_tokens)
            self._cost.observe_output(usage.completion_tokens)
        uncached = lease.uncached_tokens
        if cached_tokens is not None:
            self._compare(labels, matched_tokens, cached_tokens)
            uncached = max(0, usage.prompt_tokens - cached_tokens)
        if first_token_s is None:
            return
        ahead = lease.tokens_ahead - lease.uncached_tokens
        self._cost.observe_prefill(replica, ahead + uncached, first_token_s)
        steps = (usage.completion_tokens or 0) - 1
        if steps > 0 and lease.first_byte_at is not None:
            running = lease.replica.running + 1
            self._cost.observe_decode(replica, running, (now - lease.first_byte_at) / steps)

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
