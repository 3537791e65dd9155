"""What the router predicts of replicas from what it routes, and when each prediction ends.

    replica with KV events      when its events say so, a moment after they could have, or in time
    replica without             with the belief it has become: see believed_cache

A prediction is made when a request is routed, so that siblings follow it at once, and is dropped
when the attempt fails.
"""

import heapq
import itertools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from router.core.believed_cache import AnsweredPrompt, BelievedCache
from router.core.chains import Prediction
from router.core.ids import Namespace, ReplicaId
from router.core.prefix_tree import PrefixTree


class RoutedPrompt(NamedTuple):
    """A prompt on its way to a replica. `asked_at` is the moment of the replica's cache, if it has
    one that is believed."""

    replica: ReplicaId
    namespace: Namespace
    prompt: bytes
    prediction: Prediction
    asked_at: int


class Predictions:
    """All predictions in one prefix tree."""

    def __init__(
        self,
        tree: PrefixTree,
        believed: Mapping[ReplicaId, BelievedCache],
        *,
        ttl_s: float,
        grace_s: float,
    ) -> None:
        """
        Args:
            believed: The replicas that send no KV events.
            ttl_s: With events: at most this long without a word from the replica.
            grace_s: With events: this long after the prompt is computed.
        """
        self._tree = tree
        self._believed = believed
        self._ttl_s = ttl_s
        self._grace_s = grace_s
        self._expiries: list[tuple[float, int, Prediction]] = []
        self._order = itertools.count()

    def routed(
        self, replica: ReplicaId, namespace: Namespace, prompt: bytes, now: float
    ) -> RoutedPrompt:
        """The replica will hold this prompt soon."""
        prediction = self._tree.predict(namespace, prompt, replica)
        cache = self._believed.get(replica)
        if cache is not None:
            return RoutedPrompt(replica, namespace, prompt, prediction, cache.moment)
        self._end_at(now + self._ttl_s, prediction)
        return RoutedPrompt(replica, namespace, prompt, prediction, 0)

    def computed(self, routed: RoutedPrompt, now: float) -> None:
        """The replica has computed it: its events, if it sends any, are on their way."""
        if routed.replica not in self._believed:
            self._end_at(now + self._grace_s, routed.prediction)

    def answered(
        self,
        routed: RoutedPrompt,
        *,
        prompt_tokens: int | None,
        completion_tokens: int | None,
        cached_tokens: int | None,
        bytes_per_token: float,
        now: float,
    ) -> None:
        """The replica has answered it, or at least begun to; the numbers are its usage's."""
        cache = self._believed.get(routed.replica)
        if cache is None:
            self.computed(routed, now)
            return
        answer = AnsweredPrompt(
            prompt=routed.prompt,
            namespace=routed.namespace,
            asked_at=routed.asked_at,
            prediction=routed.prediction,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cached_tokens=cached_tokens,
        )
        self._drop(cache.answered(answer, bytes_per_token, now))

    def failed(self, routed: RoutedPrompt) -> None:
        """The replica has not computed it, or has failed since."""
        self._tree.drop(routed.prediction)

    def expire_some(self, now: float, most: int) -> None:
        """Drops up to so many of those whose time is over. With each request a few: so that they
        do not pile up between calls of `expire`, which would then keep requests waiting."""
        while most > 0 and self._expiries and self._expiries[0][0] <= now:
            self._tree.drop(heapq.heappop(self._expiries)[2])
            most -= 1

    def expire(self, now: float) -> None:
        """Drops those whose time is over."""
        self.expire_some(now, len(self._expiries))
        for cache in self._believed.values():
            self._drop(cache.expire(now))

    def _end_at(self, at: float, prediction: Prediction) -> None:
        heapq.heappush(self._expiries, (at, next(self._order), prediction))

    def _drop(self, predictions: Iterable[Prediction]) -> None:
        for prediction in predictions:
            self._tree.drop(prediction)
