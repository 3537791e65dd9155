"""Policies by name: ours, and the plain ones to compare it with."""

from collections.abc import Callable
from random import Random

from router.core.fleet import Replica
from router.core.policy import (
    CostTerms,
    Decision,
    FleetView,
    Policy,
    RouteQuery,
    candidates,
    split_prompt,
)
from router.core.prefix_aware import PrefixAware


class UnknownPolicy(ValueError):
    """A config asks for a policy there is none of."""


class RoundRobin:
    """Each in turn. The turn is the view's: the number of leases ever taken."""

    def choose(self, query: RouteQuery, view: FleetView, rng: Random) -> Decision:
        routable = candidates(query, view)
        return _decide(query, routable[view.turn % len(routable)])


class AnyReplica:
    """One at random, all as likely."""

    def choose(self, query: RouteQuery, view: FleetView, rng: Random) -> Decision:
        return _decide(query, rng.choice(candidates(query, view)))


class LeastRequests:
    """The one with the fewest requests in flight; at random among equals."""

    def choose(self, query: RouteQuery, view: FleetView, rng: Random) -> Decision:
        return _least(query, view, rng, lambda one: one.running + one.other_running)


class LeastTokens:
    """The one with the fewest tokens left to prefill; at random among equals."""

    def choose(self, query: RouteQuery, view: FleetView, rng: Random) -> Decision:
        return _least(
            query, view, rng, lambda one: one.pending_prefill_tokens + one.other_prefill_tokens
        )


class PowerOfTwo:
    """Of two drawn at random, the one with fewer requests in flight.

    Source: Mitzenmacher 2001, "The power of two choices in randomized load balancing".
    """

    def choose(self, query: RouteQuery, view: FleetView, rng: Random) -> Decision:
        routable = candidates(query, view)
        drawn = rng.sample(routable, min(2, len(routable)))
        return _decide(query, min(drawn, key=lambda one: one.running + one.other_running))


POLICIES: dict[str, Callable[[], Policy]] = {
    "prefix_aware": PrefixAware,
    "round_robin": RoundRobin,
    "random": AnyReplica,
    "least_requests": LeastRequests,
    "least_tokens": LeastTokens,
    "power_of_two": PowerOfTwo,
}


def make_policy(kind: str) -> Policy:
    """The policy of this name.

    Raises:
        UnknownPolicy: There is none; the message lists those there are.
    """
    make = POLICIES.get(kind)
    if make is None:
        raise UnknownPolicy(f"no policy {kind!r}; there are {', '.join(sorted(POLICIES))}")
    return make()


def _least(
    query: RouteQuery, view: FleetView, rng: Random, load: Callable[[Replica], int]
) -> Decision:
    routable = candidates(query, view)
    lowest = min(map(load, routable))
    return _decide(query, rng.choice([one for one in routable if load(one) == lowest]))


def _decide(query: RouteQuery, replica: Replica) -> Decision:
    """The decision for a policy that weighs no costs: what matched is still predicted."""
    split = split_prompt(query, replica, query.match)
    return Decision(
        replica=replica.id,
        matched_tokens=split.matched,
        uncached_tokens=split.uncached,
        tied=1,
        terms=(CostTerms(0.0, replica.id, split.matched, split.uncached),),
    )
