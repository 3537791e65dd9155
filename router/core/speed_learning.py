"""What a good answer teaches of its replica's speed, and of the lengths of prompts and answers."""

from router.core.attention import attention_pairs
from router.core.cost import CostModel
from router.core.fleet import Lease


def learn_first_token(cost: CostModel, lease: Lease, first_token_s: float) -> None:
    """A first token came: what its replica did since the one before.

    Where enough is known, the time to it is learned from at the end of its answer, whose usage says
    what was cached; the first ones at once, for anything is better than nothing. What the replica
    did is taken at once, and corrected then.
    """
    replica = lease.replica.id
    tokens, pairs = lease.uncached_tokens, lease.prefill_pairs
    if lease.busy_s is not None:
        cost.observe_computed(replica, tokens, pairs, lease.busy_s)
    if lease.alone and not cost.knows_prefill:
        lease.taught = True
        cost.observe_first_token(replica, tokens, pairs, first_token_s)


def learn_speed(
    cost: CostModel,
    lease: Lease,
    *,
    prompt_bytes: int,
    prompt_tokens: int,
    completion_tokens: int | None,
    cached_tokens: int | None,
    first_token_s: float | None,
    now: float,
) -> None:
    """
    Args:
        prompt_tokens, completion_tokens: By the answer's usage; None: it did not say.
        cached_tokens: Of the prompt, as far as the replica's reports can be relied on.
        first_token_s: From the lease to the first token, where that is known.
        now: When the answer ended.
    """
    replica = lease.replica.id
    cost.observe_prompt(prompt_bytes, prompt_tokens)
    if completion_tokens is not None:
        cost.observe_output(completion_tokens)
    if first_token_s is None:
        return
    tokens, pairs = lease.uncached_tokens, lease.prefill_pairs
    if cached_tokens is not None:
        tokens = max(0, prompt_tokens - cached_tokens)
        pairs = attention_pairs(cached_tokens, tokens)
    if lease.busy_s is not None:
        more = (tokens - lease.uncached_tokens, pairs - lease.prefill_pairs)
        cost.correct_computed(replica, *more)
    if lease.alone and not lease.taught:
        cost.observe_first_token(replica, tokens, pairs, first_token_s)
    steps = (completion_tokens or 0) - 1
    if steps > 0 and lease.first_byte_at is not None:
        running = lease.replica.running + 1
        cost.observe_decode(replica, running, (now - lease.first_byte_at) / steps)
