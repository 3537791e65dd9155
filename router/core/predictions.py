"""What the router predicts of replicas from what it routes, and when each prediction ends.

    replica with KV events      when its events say so, a moment after they should have, or in time
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
from router.core.event_delay import EventDelay
from router.core.ids import Namespace, ReplicaId
from router.core.prefix_tree import PrefixTree


class RoutedPrompt(NamedTuple):
    """A prompt on its way to a replica. `asked_at` is the moment of the replica's cache, if it has
    one that is believed. `probe_end` is what `event_delay.probe_end` says of it."""

    replica: ReplicaId
    namespace: Namespace
    prompt: bytes
    prediction: Prediction
    asked_at: int
    probe_end: int


class _Ending(NamedTuple):
    """Of a prediction. `computed_at` is when its prompt was; None: `at` is its latest end."""

    at: float
    order: int
    replica: ReplicaId
    prediction: Prediction
    computed_at: float | None


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
            grace_s: With events: this long after the prompt is computed; longer with a replica
                whose events are seen to come later.
        """
        self._tree = tree
        self._believed = believed
        self._ttl_s = ttl_s
        self._grace_s = grace_s
        self._delays: dict[ReplicaId, EventDelay] = {}
        self._endings: list[_Ending] = []
        self._order = itertools.count()

    def routed(
        self,
        replica: ReplicaId,
        namespace: Namespace,
        prompt: bytes,
        now: float,
        probe_end: int = 0,
    ) -> RoutedPrompt:
        """The replica will hold this prompt soon.

        Args:
            probe_end: What `event_delay.probe_end` says of it.
        """
        prediction = self._tree.predict(namespace, prompt, replica)
        cache = self._believed.get(replica)
        if cache is not None:
            return RoutedPrompt(replica, namespace, prompt, prediction, cache.moment, 0)
        self._end(now + self._ttl_s, replica, prediction, None)
        return RoutedPrompt(replica, namespace, prompt, prediction, 0, probe_end)

    def computed(self, routed: RoutedPrompt, now: float) -> None:
        """The replica has computed it just now: its events, if it sends any, are on their way."""
        if routed.replica in self._believed:
            return
        if routed.probe_end:
            delay = self._delay(routed.replica)
            delay.computed(routed.namespace, routed.prompt, routed.probe_end, now)
        self.left(routed, now)

    def left(self, routed: RoutedPrompt, now: float) -> None:
        """Nothing more will be heard of it but events, if the replica sends any: they tell how far
        it came."""
        if routed.replica not in self._believed:
            at = now + self._delay(routed.replica).grace_s(now)
            self._end(at, routed.replica, routed.prediction, now)

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
            self.left(routed, now)
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

    def event_delay_s(self, replica: ReplicaId) -> float:
        """How long after a first token its KV events come, as far as was seen."""
        delay = self._delays.get(replica)
        return 0.0 if delay is None else delay.delay_s

    def failed(self, routed: RoutedPrompt) -> None:
        """The replica has not computed it, or has failed since."""
        self._tree.drop(routed.prediction)

    def expire_some(self, now: float, most: int) -> None:
        """Drops up to so many of those whose time is over. With each request a few: so that they
        do not pile up between calls of `expire`, which would then keep requests waiting."""
        while most > 0 and self._endings and self._endings[0].at <= now:
            most -= 1
            ending = heapq.heappop(self._endings)
            at = self._end_of(ending, now)
            if at > now and ending.prediction.node is not None:
                self._end(at, ending.replica, ending.prediction, ending.computed_at)
            else:
                self._tree.drop(ending.prediction)

    def expire(self, now: float) -> None:
        """Drops those whose time is over; often, as it sees when events have come."""
        for delay in self._delays.values():
            delay.look(now)
        self.expire_some(now, len(self._endings))
        for cache in self._believed.values():
            self._drop(cache.expire(now))

    def _delay(self, replica: ReplicaId) -> EventDelay:
        delay = self._delays.get(replica)
        if delay is None:
            delay = EventDelay(self._tree, replica, grace_s=self._grace_s, ttl_s=self._ttl_s)
            self._delays[replica] = delay
        return delay

    def _end_of(self, ending: _Ending, now: float) -> float:
        """When it is over, as far as is known by now of its replica's events."""
        if ending.computed_at is None:
            return ending.at
        return ending.computed_at + self._delay(ending.replica).grace_s(now)

    def _end(
        self, at: float, replica: ReplicaId, prediction: Prediction, computed_at: float | None
    ) -> None:
        ending = _Ending(at, next(self._order), replica, prediction, computed_at)
        heapq.heappush(self._endings, ending)

    def _drop(self, predictions: Iterable[Prediction]) -> None:
        for prediction in predictions:
            self._tree.drop(prediction)
