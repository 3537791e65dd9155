"""A scheduler's bounds, its refusals and its running totals.

Refused
├── QueueFull     a bound was reached; try again later
└── NeverFits     longer than the context or the whole KV cache; do not try again
"""

from dataclasses import dataclass


class Refused(Exception):
    """The scheduler does not take a sequence; the message says why."""


class QueueFull(Refused):
    """As many sequences run and wait as may."""


class NeverFits(Refused):
    """The sequence could not finish even alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """The bounds of a scheduler.

    Attributes:
        max_batched_tokens: Tokens one step computes at most; at least max_running_sequences.
        max_running_sequences: Sequences that hold blocks at the same time.
        max_waiting_sequences: Sequences taken beyond max_running_sequences; they wait. Preempted
            ones wait too, and are never refused.
        max_model_len: Tokens a sequence has at most, prompt and generation together.
        prefix_cache: Whether blocks are found again by their content.
    """

    max_batched_tokens: int
    max_running_sequences: int
    max_waiting_sequences: int
    max_model_len: int
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        assert self.max_batched_tokens >= self.max_running_sequences > 0
        assert self.max_waiting_sequences > 0
        assert self.max_model_len > 1


@dataclass(slots=True)
class Counters:
    """Totals since the start; they only grow.

    Attributes:
        prompt_tokens: Of sequences admitted for the first time.
        generated_tokens: Tokens sampled.
        prefix_queries, prefix_hits: Prompt tokens looked up in the cache on first admission, and
            those found there.
        preemptions: How often a running sequence lost its blocks.
        recomputed_tokens: Tokens computed a second time because of that.
        steps: Steps applied.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0
    steps: int = 0
