"""What policies see of caches that are known by KV events: trust, size and fill; ranks as one.

The data-parallel ranks of an engine are caches of their own in the index. Which of them serves a
request is the engine's choice, so a replica is as warm as its warmest rank, holds what they hold
together, and is trusted as far as the least of them.
"""

from collections.abc import Iterable, Mapping

from router.config import ReplicaConfig
from router.control.subscription import SubscriptionStatus
from router.core.fleet import Fleet
from router.core.ids import ReplicaId
from router.core.prefix_tree import Confirmed, Match, PrefixTree
from router.core.ranks import rank_cache_id, replica_of


class EventCaches:
    """Keeps the fleet's replicas up to date with what their events say."""

    def __init__(
        self,
        replicas: Iterable[ReplicaConfig],
        fleet: Fleet,
        tree: PrefixTree,
        subscriptions: Mapping[str, SubscriptionStatus],
    ) -> None:
        """
        Args:
            subscriptions: By cache id; filled by whoever follows the events.
        """
        self._fleet = fleet
        self._tree = tree
        self._subscriptions = subscriptions
        self._cache_ids = {
            replica.id: [rank_cache_id(replica.id, rank) for rank in range(replica.kv_events.ranks)]
            for replica in replicas
            if replica.kv_events is not None
        }
        self._ranked = any(len(cache_ids) > 1 for cache_ids in self._cache_ids.values())

    def changed(self, cache_id: str, now: float) -> None:
        """Events of this cache were applied, or its subscription changed."""
        replica = self._fleet[replica_of(cache_id)]
        cache_ids = self._cache_ids[replica.id]
        replica.held_tokens = sum(self._tree.held_tokens(one) for one in cache_ids)
        capacities_tokens = []
        for status in self._statuses(replica.id):
            if status.block_size is None:
                continue
            replica.block_size = status.block_size
            if status.total_blocks is not None:
                capacities_tokens.append(status.total_blocks * status.block_size)
        if len(capacities_tokens) == len(cache_ids):
            replica.capacity_tokens = sum(capacities_tokens)
        replica.trust = self._trust(replica.id, now)

    def refresh(self, now: float) -> None:
        """Trust fades while nothing is heard."""
        for replica_id in self._cache_ids:
            self._fleet[replica_id].trust = self._trust(replica_id, now)

    def cache_ids(self, replicas: Iterable[ReplicaId]) -> list[str]:
        """The ids of these replicas' caches; one that sends no events has its own name's."""
        return [one for replica in replicas for one in self._cache_ids.get(replica, [replica])]

    def by_replica(self, match: Match) -> Match:
        """What each replica holds, of what each cache holds."""
        if not self._ranked:
            return match
        confirmed: dict[ReplicaId, Confirmed] = {}
        for cache_id, found in match.confirmed.items():
            replica = replica_of(cache_id)
            other = confirmed.get(replica)
            if other is None or found.tokens > other.tokens:
                confirmed[replica] = found
        return match._replace(confirmed=confirmed)

    def _trust(self, replica_id: ReplicaId, now: float) -> float:
        """0 to 1; 0 before all of its caches have been subscribed to."""
        statuses = self._statuses(replica_id)
        if len(statuses) < len(self._cache_ids[replica_id]):
            return 0.0
        return min(status.trust(now) for status in statuses)

    def _statuses(self, replica_id: ReplicaId) -> list[SubscriptionStatus]:
        found = map(self._subscriptions.get, self._cache_ids[replica_id])
        return [status for status in found if status is not None]
