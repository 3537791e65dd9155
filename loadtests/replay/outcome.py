"""What became of one request, and whether that was good."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

DROPPED = "dropped"
INTERRUPTED = "interrupted"
TIMEOUT = "timeout"
CONNECT = "connect"
BROKEN = "broken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Times are seconds from the replay's beginning; None: it never came to that, or is not told.

    Attributes:
        number: Its place in the trace.
        scheduled_s: When the trace has it; in a closed loop, when its turn came.
        ready_s: When it could have been sent: when scheduled, or when the cap let it through.
        sent_s: None: it never was.
        first_token_s, last_token_s: When the first and last of its tokens came.
        ended_s: When its answer ended, or failed.
        error: None: answered whole. `dropped` (never sent), `interrupted`, `timeout`, `connect`,
            `broken` (closed in the middle, an error event, no stream), or `http 503` and the like.
        message: What the server or the connection said of the error.
        prompt_tokens_wanted, output_tokens_wanted: What it should have had.
        prompt_tokens, cached_tokens, output_tokens: What the answer's usage says; without one,
            output tokens are counted by events.
        gaps_s: Between events that held tokens.
    """

    number: int
    scheduled_s: float
    ready_s: float
    sent_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    ended_s: float | None = None
    status: int | None = None
    error: str | None = None
    message: str = ""
    prompt_tokens_wanted: int
    output_tokens_wanted: int
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    replica: str | None = None
    request_id: str | None = None
    gaps_s: Sequence[float] = field(default=())

    @property
    def ttft_s(self) -> float | None:
        """From when it was scheduled, so that waiting to be sent counts."""
        return _since(self.first_token_s, self.scheduled_s)

    @property
    def ttft_sent_s(self) -> float | None:
        return _since(self.first_token_s, self.sent_s)

    @property
    def send_delay_s(self) -> float | None:
        return _since(self.sent_s, self.scheduled_s)

    @property
    def late_s(self) -> float | None:
        """The part of the delay that is the generator's own."""
        return _since(self.sent_s, self.ready_s)

    @property
    def e2e_s(self) -> float | None:
        """From when it was scheduled to the end of a whole answer."""
        return None if self.error else _since(self.ended_s, self.scheduled_s)

    @property
    def tpot_s(self) -> float | None:
        """Of a whole answer, per token after the first; None of one token."""
        if self.error or self.first_token_s is None or self.last_token_s is None:
            return None
        if self.output_tokens is None or self.output_tokens < 2:
            return None
        return (self.last_token_s - self.first_token_s) / (self.output_tokens - 1)

    def line(self) -> bytes:
        """As JSON: every field but the gaps, and the times a reader wants."""
        whole = {
            name: getattr(self, name)
            for name in (*_FIELDS, "ttft_s", "ttft_sent_s", "send_delay_s", "tpot_s", "e2e_s")
        }
        return msgspec.json.encode(whole)


_FIELDS = tuple(name for name in Outcome.__dataclass_fields__ if name != "gaps_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What makes an answer good: each limit that is set, in seconds; answered whole, always."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def met_by(self, outcome: Outcome) -> bool:
        """An answer of one token has no time per token, and meets every limit on it."""
        if outcome.error is not None:
            return False
        ttft_s, tpot_s, e2e_s = outcome.ttft_s, outcome.tpot_s, outcome.e2e_s
        return (
            (self.ttft_s is None or (ttft_s is not None and ttft_s <= self.ttft_s))
            and (self.tpot_s is None or tpot_s is None or tpot_s <= self.tpot_s)
            and (self.e2e_s is None or (e2e_s is not None and e2e_s <= self.e2e_s))
        )

    def __str__(self) -> str:
        limits = (("TTFT", self.ttft_s), ("TPOT", self.tpot_s), ("E2E", self.e2e_s))
        told = [f"{name} ≤ {limit_s:g} s" for name, limit_s in limits if limit_s is not None]
        return ", ".join(told) or "answered"


def _since(time_s: float | None, from_s: float | None) -> float | None:
    return None if time_s is None or from_s is None else time_s - from_s
