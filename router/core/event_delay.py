"""How long after a prompt is computed its replica's KV events come, learned from probes.

    computed ──▶ probe: predict part of the prompt ──▶ a block reaches its end: that was the delay

A probe is a prediction like any other, that ends where whole blocks of the prompt surely do, in
what the replica did not hold: the tree drops it when the replica's events reach it. A few wait at
a time, each twice as far apart as the one before, so that events that never come (of a prompt that
was evicted at once, or is not cached) are told from events that are late: they come in order, and
those of a later probe show that an earlier one's will not.
"""

from typing import NamedTuple

from router.core.chains import Prediction
from router.core.ids import Namespace, ReplicaId
from router.core.prefix_tree import PrefixTree

MARGIN_BLOCKS = 3
"""A probe ends so far before its prompt: the last block may be partial, its bytes are estimated."""

PROBE_EVERY_S = 1.0
MEMORY = 0.75
"""Of a longer delay, after each shorter one."""

SLACK = 2.0
"""Events may come so many times later than they have yet."""


def probe_end(
    prompt_bytes: int, uncached_tokens: int, block_size: int, bytes_per_token: float
) -> int:
    """The byte of a prompt up to which a probe of it would go; 0: too little of it is new."""
    block_bytes = block_size * bytes_per_token
    new_bytes = uncached_tokens * bytes_per_token
    if new_bytes < (MARGIN_BLOCKS + 1) * block_bytes:
        return 0
    return max(0, prompt_bytes - int(MARGIN_BLOCKS * block_bytes))


class _Probe(NamedTuple):
    computed_at: float
    prediction: Prediction


class EventDelay:
    """One replica's.

    Attributes:
        delay_s: From a prompt's first token to the events that say it is cached, as last seen.
    """

    def __init__(
        self, tree: PrefixTree, replica: ReplicaId, *, grace_s: float, ttl_s: float
    ) -> None:
        """
        Args:
            grace_s: How long events are always waited for.
            ttl_s: How long at most.
        """
        self._tree = tree
        self._replica = replica
        self._grace_s = grace_s
        self._ttl_s = ttl_s
        self.delay_s = 0.0
        self._waiting: list[_Probe] = []
        self._probed_at = float("-inf")

    def computed(self, namespace: Namespace, prompt: bytes, end: int, now: float) -> None:
        """A prompt was computed just now, of which a probe could go up to byte `end`."""
        since_s = now - self._probed_at
        if since_s < PROBE_EVERY_S:
            return
        self.look(now)
        if self._waiting and since_s < self._probed_at - self._waiting[0].computed_at:
            return
        self._probed_at = now
        confirmed = self._tree.match(namespace, prompt).confirmed.get(self._replica)
        if confirmed is not None and confirmed.end >= end:
            self._came_after(0.0)
            return
        prediction = self._tree.predict(namespace, prompt[:end], self._replica)
        self._waiting.append(_Probe(now, prediction))

    def grace_s(self, now: float) -> float:
        """A prediction ends so long after its prompt is computed, if nothing confirms it."""
        self.look(now)
        waited_s = now - self._waiting[0].computed_at if self._waiting else 0.0
        return min(self._ttl_s, max(self._grace_s, SLACK * max(self.delay_s, waited_s)))

    def look(self, now: float) -> None:
        """Which probes are confirmed by now: often, or the delay seems longer."""
        waiting = self._waiting
        if waiting and now - waiting[0].computed_at > self._ttl_s:
            self._tree.drop(waiting.pop(0).prediction)
        for index in reversed(range(len(waiting))):
            if waiting[index].prediction.node is None:
                self._came_after(now - waiting[index].computed_at)
                for earlier in waiting[:index]:
                    self._tree.drop(earlier.prediction)
                del waiting[: index + 1]
                return

    def _came_after(self, delay_s: float) -> None:
        self.delay_s = max(delay_s, MEMORY * self.delay_s)
