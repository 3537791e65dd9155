"""Which replica gets a request: policies are pure, and say what each replica would have cost.

Same query, same view, same random state: same decision. What a policy would have to remember
between requests (whose turn it is, what is in flight) is in the view.
"""

from collections.abc import Collection, Sequence
from random import Random
from typing import NamedTuple, Protocol

from protocol.errors import Unavailable
from router.core.fleet import Replica
from router.core.ids import ReplicaId
from router.core.prefix_tree import Confirmed, Match
from router.core.targets import Targets
from router.core.ticket import Work

EMPTY_MATCH = Match({}, {})
_NOTHING = Confirmed(0, 0)
_new_tuple = tuple.__new__


class NoReplica(Unavailable):
    """No replica may take the request: none is well, or all that are were tried."""

    code = "no_replica"


class RouteQuery(NamedTuple):
    """What a policy may know about a request.

    Attributes:
        prompt: The rendered prompt; empty if the request has none.
        match: What the replicas hold of it.
        bytes_per_token: Of this model's prompts, as learned.
        expected_output_tokens: How long the answer will be, as learned and limited.
        excluded: Replicas that were tried already.
        now: The caller's seconds.
        ttft_target_s: Seconds from now within which its first token is wanted; None: it has no
            target.
    """

    prompt: bytes
    match: Match = EMPTY_MATCH
    bytes_per_token: float = 4.0
    expected_output_tokens: float = 128.0
    excluded: Collection[ReplicaId] = ()
    now: float = 0.0
    ttft_target_s: float | None = None


class FleetView(Protocol):
    """What a policy sees of a `Fleet`."""

    @property
    def routable(self) -> Sequence[Replica]: ...

    @property
    def turn(self) -> int: ...

    @property
    def targets(self) -> Targets: ...


class CostTerms(NamedTuple):
    """What a replica would cost, in seconds, and why. Terms a policy does not weigh are 0."""

    cost: float
    replica: ReplicaId
    matched_tokens: int
    uncached_tokens: int
    wait: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    room: float = 0.0
    target: float = 0.0


class PromptSplit(NamedTuple):
    """A prompt's tokens as one replica would see them.

    Attributes:
        matched: Those it need not compute.
        uncached: Those it must; at least one.
        told: `matched` if its events said so; 0 if it is what we believe to have sent there.
        host, disk: Of `matched`, those it must first load from there.
    """

    matched: int
    uncached: int
    told: int
    host: int
    disk: int


class Decision(NamedTuple):
    """The chosen replica, and the terms of all that could have been chosen.

    Attributes:
        matched_tokens: Of the prompt, those we think the chosen replica need not compute.
        uncached_tokens: Those we think it must: what a lease is taken for.
        tied: How many replicas were as good as the best.
    """

    replica: ReplicaId
    matched_tokens: int
    uncached_tokens: int
    tied: int
    terms: Sequence[CostTerms]

    def __str__(self) -> str:
        """One line for the log; made only when asked for."""
        costs = ", ".join(
            f"{one.replica} {one.cost:.3f}s = wait {one.wait:.3f} + prefill {one.prefill:.3f}"
            f" + decode {one.decode:.3f} + room {one.room:.3f} + target {one.target:.3f}"
            f" (matched {one.matched_tokens})"
            for one in self.terms
        )
        return f"{self.replica} of {self.tied} tied: {costs}"


class Policy(Protocol):
    """Pure: same query, same view, same random state, same decision."""

    def choose(self, query: RouteQuery, view: FleetView, rng: Random) -> Decision:
        """Raises NoReplica when nobody may take the request."""
        ...


def candidates(query: RouteQuery, view: FleetView) -> Sequence[Replica]:
    """The replicas that may take the request.

    Raises:
        NoReplica: There are none.
    """
    routable = view.routable
    if query.excluded:
        excluded = query.excluded
        routable = [one for one in routable if one.id not in excluded]
    if not routable:
        tried = f" ({len(query.excluded)} tried)" if query.excluded else ""
        raise NoReplica(f"no replica can take the request now{tried}")
    return routable


def work_of(query: RouteQuery, view: FleetView) -> Work:
    """What each replica would have to compute of the prompt."""
    match, routable = query.match, view.routable
    held = {
        one.id: split_prompt(query, one, match).uncached
        for one in routable
        if one.id in match.confirmed or one.id in match.predicted
    }
    if held and len(held) == len(routable):
        most = max(held.values())
    else:
        most = int(len(query.prompt) / query.bytes_per_token + 0.5) or 1
    return Work.of(most, {name: tokens for name, tokens in held.items() if tokens < most})


def split_prompt(query: RouteQuery, replica: Replica, match: Match) -> PromptSplit:
    """How much of the prompt one replica holds, confirmed or predicted."""
    bytes_per_token = query.bytes_per_token
    matched, end, host, disk = match.confirmed.get(replica.id, _NOTHING)
    told = matched
    predicted_end = match.predicted.get(replica.id, 0)
    if predicted_end > end:
        # Only whole blocks are kept, counted from the start of the prompt.
        size = replica.block_size
        predicted = int(predicted_end / bytes_per_token) // size * size
        if predicted * bytes_per_token > end:
            matched, end, told = predicted, int(predicted * bytes_per_token), 0
    # Engines compute the last token of a prompt in any case.
    uncached = int((len(query.prompt) - end) / bytes_per_token + 0.5) or 1
    # The same as calling PromptSplit, in a third of the time.
    return _new_tuple(PromptSplit, (matched, uncached, told, host, disk))
