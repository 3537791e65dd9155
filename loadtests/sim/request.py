"""What is simulated: requests with the tokens of their prompts, in the order they arrive."""

from array import array
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SimRequest:
    """One request.

    Attributes:
        number: Its place in the trace.
        arrival_s: When it comes, in seconds from the trace's beginning.
        prompt: Token ids, each below 2³²; at least one.
        output_tokens: How long its answer is: at least one token.
        answer: Its tokens, `output_tokens` of them, where later prompts have them; None: others.
        conversation: Which conversation or session it belongs to, where that is known: what a
            client could send as a session id.
        tenant: Whose it is.
        ttft_target_s: Within how many seconds its first token is wanted; None: it has no target.
    """

    number: int
    arrival_s: float
    prompt: "array[int]"
    output_tokens: int
    answer: "array[int] | None" = None
    conversation: int | None = None
    tenant: str = ""
    ttft_target_s: float | None = None
