"""What the simulator asks of a router, and tells it: no more and no earlier than real ones know."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol, runtime_checkable

from loadtests.sim.request import SimRequest
from protocol.kv_events import KvEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFacts:
    """What an operator may configure of a replica, and its first snapshot tells.

    Attributes:
        id: Its name.
        block_size: Tokens a KV block.
        capacity_tokens: Size of its KV cache.
        max_running: Sequences it computes at the same time.
    """

    id: str
    block_size: int
    capacity_tokens: int
    max_running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a replica reports when it is asked (vLLM's /metrics, SGLang's /get_load).

    Attributes:
        running, waiting: Sequences.
        waiting_tokens: Prompt tokens of the waiting ones, cache hits not taken off.
        held_tokens: Of the KV cache, in use by sequences.
    """

    running: int
    waiting: int
    waiting_tokens: int
    held_tokens: int


class SimRouter(Protocol):
    """One router with one policy, for one run. Times are virtual seconds that never go back."""

    poll_interval_s: float | None
    """How often it asks replicas for their load; None: never."""

    hears_events: bool
    """Whether it follows KV events."""

    def route(self, request: SimRequest, now: float) -> int | None:
        """Which replica gets it, by index; called once a request. None: see `HoldsBack`."""

    def first_token(self, request: SimRequest, replica: int, now: float) -> None:
        """The first token of its answer passes through."""

    def done(self, request: SimRequest, replica: int, cached_tokens: int, now: float) -> None:
        """Its answer has ended; usage said how many prompt tokens were cached."""

    def refused(self, request: SimRequest, replica: int, now: float) -> None:
        """The replica said at once that it can never take it."""

    def events(self, replica: int, events: Sequence[KvEvent], now: float) -> None:
        """A batch of KV events arrives, in order; only if `hears_events`."""

    def load(self, replica: int, load: Load, now: float) -> None:
        """A replica's answer to being asked; only if `poll_interval_s`."""

    def lost(self, replica: int, now: float) -> None:
        """It is known to have restarted: its cache is empty, its requests have failed."""


@runtime_checkable
class HoldsBack(Protocol):
    """A router in which requests may wait: later it sends them itself, or turns them away."""

    tick_s: float
    """How often it is told the time."""

    def hold_back(
        self,
        send: Callable[[SimRequest, int, float], None],
        turn_away: Callable[[SimRequest, float], None],
    ) -> None:
        """Called once, before the first request: whom to call with those it gave no replica."""

    def tick(self, now: float) -> None:
        """Time has passed."""


MakeRouter = Callable[[Sequence[ReplicaFacts], Random], SimRouter]
"""A router for a fleet; all its chance comes from the generator."""
