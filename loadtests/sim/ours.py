"""Warmroute's own core as a simulated router: its tree, policy, leases, predictions, learning."""

from collections.abc import Collection, Sequence
from random import Random

from loadtests.sim.request import SimRequest
from loadtests.sim.router import Load, ReplicaFacts
from prompt.vocabulary import IdVocabulary
from protocol.kv_events import KvEvent
from router.config import PredictionConfig
from router.core.cost import CostModel
from router.core.event_delay import probe_end
from router.core.fleet import Fleet, Lease, Replica
from router.core.ids import ReplicaId
from router.core.kv_index import KvIndex
from router.core.policies import make_policy
from router.core.policy import Policy, RouteQuery, work_of
from router.core.predictions import Predictions, RoutedPrompt
from router.core.prefix_tree import PrefixTree
from router.core.speed_learning import learn_first_token, learn_speed
from router.core.states import StateEvent
from router.core.ticket import Work

_DEFAULTS = PredictionConfig()
_EXPIRED_PER_REQUEST = 3
_SWEPT_PER_REQUEST = 32


class Ours:
    """What `router.served_model.ServedModel` does, without sockets."""

    poll_interval_s: float | None = None
    hears_events: bool = True

    def __init__(
        self, replicas: Sequence[ReplicaFacts], rng: Random, policy: Policy | None = None
    ) -> None:
        """
        Args:
            policy: None: the default one.
        """
        self._rng = rng
        self._policy = policy or make_policy("prefix_aware")
        self._tree = PrefixTree()
        self._index = KvIndex(self._tree, IdVocabulary())
        self._cost = CostModel()
        self._fleet = Fleet()
        self._predictions = Predictions(
            self._tree, {}, ttl_s=_DEFAULTS.ttl_s, grace_s=_DEFAULTS.grace_s
        )
        self._numbers = {one.id: number for number, one in enumerate(replicas)}
        self._ids = [one.id for one in replicas]
        for one in replicas:
            replica = Replica(
                id=one.id,
                rates=self._cost.rates(one.id),
                block_size=one.block_size,
                capacity_tokens=one.capacity_tokens,
            )
            self._fleet.add(replica)
            self._fleet.apply(one.id, StateEvent.PROBE_OK, 0.0)
        self._under_way: dict[int, tuple[Lease, RoutedPrompt, float | None]] = {}

    def route(self, request: SimRequest, now: float) -> int:
        return self.place(request, now)

    def place(self, request: SimRequest, now: float, excluded: Collection[ReplicaId] = ()) -> int:
        self._predictions.expire_some(now, _EXPIRED_PER_REQUEST)
        self._tree.sweep(_SWEPT_PER_REQUEST)
        text = request.prompt.tobytes()
        if request.ttft_target_s is not None:
            self._fleet.targets.came(request.ttft_target_s)
        expected = self._cost.expected_output_tokens(None)
        decision = self._policy.choose(
            RouteQuery(
                prompt=text,
                match=self._tree.match((), text),
                bytes_per_token=self._cost.bytes_per_token,
                expected_output_tokens=expected,
                excluded=excluded,
                now=now,
                ttft_target_s=request.ttft_target_s,
            ),
            self._fleet,
            self._rng,
        )
        lease = self._fleet.lease(
            decision.replica,
            decision.uncached_tokens,
            expected,
            now,
            matched_tokens=decision.matched_tokens,
        )
        end = probe_end(
            len(text),
            decision.uncached_tokens,
            lease.replica.block_size,
            self._cost.bytes_per_token,
        )
        routed = self._predictions.routed(decision.replica, (), text, now, end)
        self._under_way[request.number] = (lease, routed, None)
        return self._numbers[decision.replica]

    def tokens_of(self, request: SimRequest) -> int:
        """What it will occupy in a KV cache, about: at least 1."""
        return self._cost.request_tokens(len(request.prompt.tobytes()), None)

    def work_of(self, request: SimRequest) -> Work:
        """What each replica would have to compute of its prompt, about."""
        text = request.prompt.tobytes()
        match = self._tree.match((), text)
        return work_of(RouteQuery(text, match, self._cost.bytes_per_token), self._fleet)

    def first_token(self, request: SimRequest, replica: int, now: float) -> None:
        lease, routed, _ = self._under_way[request.number]
        first_token_s = lease.first_byte(now)
        self._under_way[request.number] = (lease, routed, first_token_s)
        if first_token_s is not None:
            learn_first_token(self._cost, lease, first_token_s)
        self._predictions.computed(routed, now)

    def done(self, request: SimRequest, replica: int, cached_tokens: int, now: float) -> None:
        lease, routed, first_token_s = self._under_way.pop(request.number)
        lease.release(now)
        learn_speed(
            self._cost,
            lease,
            prompt_bytes=len(routed.prompt),
            prompt_tokens=len(request.prompt),
            completion_tokens=request.output_tokens,
            cached_tokens=cached_tokens,
            first_token_s=first_token_s,
            now=now,
        )
        self._predictions.answered(
            routed,
            prompt_tokens=len(request.prompt),
            completion_tokens=request.output_tokens,
            cached_tokens=cached_tokens,
            bytes_per_token=self._cost.bytes_per_token,
            now=now,
        )

    def refused(self, request: SimRequest, replica: int, now: float) -> None:
        lease, routed, _ = self._under_way.pop(request.number)
        lease.release(now)
        self._predictions.failed(routed)

    def events(self, replica: int, events: Sequence[KvEvent], now: float) -> None:
        name = self._ids[replica]
        self._index.apply(name, events)
        self._fleet[name].held_tokens = self._tree.held_tokens(name)

    def load(self, replica: int, load: Load, now: float) -> None:
        raise AssertionError("it asks nobody")

    def lost(self, replica: int, now: float) -> None:
        name = self._ids[replica]
        self._index.clear(name)
        self._fleet[name].held_tokens = 0
        for number, (lease, routed, _) in list(self._under_way.items()):
            if lease.replica.id == name:
                lease.release(now)
                self._predictions.failed(routed)
                del self._under_way[number]

    def check(self) -> None:
        self._fleet.check()
        assert self._fleet.leases == len(self._under_way)
