"""One model as the router serves it: its replicas, what they hold, how fast they are, who is next.

`ServedModel.assign` is the decision, one synchronous call: match, choose, lease, predict.
"""

import asyncio
import heapq
import itertools
import logging
from collections.abc import Mapping
from random import Random

from prompt.assets import PromptAssets
from prompt.vocabulary import Vocabulary
from protocol.load_report import LoadReport
from router.config import ModelConfig, PredictionConfig
from router.control.subscription import SubscriptionStatus
from router.core.cost import CostModel
from router.core.fleet import Fleet, Lease, Replica
from router.core.kv_index import KvIndex
from router.core.marks import Namespace, Prediction, ReplicaId
from router.core.policies import make_policy
from router.core.policy import Decision, RouteQuery
from router.core.prediction_bound import PredictionBound
from router.core.prefix_tree import PrefixTree
from router.core.states import State, StateEvent
from router.dataplane.answer_scan import AnswerUsage
from router.dataplane.exchange import Outcome
from router.dataplane.pool import ReplicaPool
from router.metrics import RouterMetrics

log = logging.getLogger(__name__)

# What the end of an attempt says of the replica's health.
_STATE_EVENTS = {
    Outcome.ANSWERED: StateEvent.REQUEST_OK,
    Outcome.CONNECT_FAILED: StateEvent.REQUEST_FAILED_CONNECT,
    Outcome.BROKEN: StateEvent.REQUEST_FAILED_STREAM,
    Outcome.BROKEN_STREAM: StateEvent.REQUEST_FAILED_STREAM,
}


# How far a replica's events are believed while they are not followed: what it held a moment ago
# it mostly holds still, and no belief at all would scatter every conversation over the fleet.
UNSYNCED_TRUST = 0.5
# Per call of `expire`, ten a second: a cleared cache of 100,000 blocks is gone in ten seconds.
_SWEEP_BLOCKS = 1000


class ServedModel:
    """Everything the router knows of one model. Lives in one event loop."""

    def __init__(
        self,
        config: ModelConfig,
        assets: PromptAssets | None,
        pools: Mapping[ReplicaId, ReplicaPool],
        prediction: PredictionConfig,
        metrics: RouterMetrics,
        rng: Random,
    ) -> None:
        """
        Args:
            assets: The model's template and vocabulary; None: matching by plain text.

        Raises:
            UnknownPolicy: the configured policy kind does not exist.
        """
        self.name = config.name
        self.config = config
        self.assets = assets
        self.tree = PrefixTree()
        self.index = KvIndex(self.tree, assets.vocabulary if assets else Vocabulary([]))
        self.cost = CostModel()
        self.fleet = Fleet()
        self.load_reports: dict[ReplicaId, LoadReport] = {}
        self.subscriptions: dict[ReplicaId, SubscriptionStatus] = {}
        self.last_decision: Decision | None = None
        self._policy = make_policy(config.policy.kind)
        self._pools = pools
        self._prediction = prediction
        self._metrics = metrics
        self._rng = rng
        self._expiries: list[tuple[float, int, Prediction]] = []
        self._expiry_order = itertools.count()
        for replica in config.replicas:
            self.fleet.add(
                Replica(
                    id=replica.id,
                    rates=self.cost.rates(replica.id),
                    trust=1.0 if replica.kv_events is None else UNSYNCED_TRUST,
                )
            )
        # Of replicas without events: belief is all there is, and has to end somewhere.
        self._bounds = {
            replica.id: PredictionBound(replica.cache_tokens, prediction.without_events_ttl_s)
            for replica in config.replicas
            if replica.kv_events is None
        }

    def assign(
        self,
        prompt: bytes | None,
        namespace: Namespace,
        *,
        output_tokens_max: int | None,
        streaming: bool,
        excluded: set[ReplicaId],
        now: float,
    ) -> "ReplicaAssignment":
        """Chooses a replica, takes its lease and remembers what it will soon hold.

        Args:
            prompt: None: the request has none we know; then load alone decides.
            streaming: Whether the answer's first byte is its first token.

        Raises:
            NoReplica: none may take it.
        """
        text = prompt or b""
        output_tokens = self.cost.expected_output_tokens(output_tokens_max)
        match = self.tree.match(namespace, text)
        decision = self._policy.choose(
            RouteQuery(
                prompt=text,
                match=match,
                bytes_per_token=self.cost.bytes_per_token,
                expected_output_tokens=output_tokens,
                excluded=excluded,
            ),
            self.fleet,
            self._rng,
        )
        self.last_decision = decision
        held_somewhere = max((one.tokens for one in match.confirmed.values()), default=0)
        if held_somewhere > decision.matched_tokens:
            regret = held_somewhere - decision.matched_tokens
            self._metrics.regret_tokens[(self.name,)].inc(regret)
        lease = self.fleet.lease(decision.replica, decision.uncached_tokens, output_tokens, now)
        prediction = None
        if text:
            prediction = self.tree.predict(namespace, text, decision.replica)
            bound = self._bounds.get(decision.replica)
            if bound is None:
                self._expire(prediction, now + self._prediction.ttl_s)
            else:
                for evicted in bound.add(prediction, decision.uncached_tokens, now):
                    self.tree.drop(evicted)
        return ReplicaAssignment(
            self, self._pools[decision.replica], decision, lease, prediction, len(text), streaming
        )

    def can_retry(self, excluded: set[ReplicaId]) -> bool:
        """Whether there is a routable replica not in `excluded`."""
        return any(replica.id not in excluded for replica in self.fleet.routable)

    def apply(self, replica: ReplicaId, event: StateEvent, now: float) -> None:
        """Something was learned of a replica's health."""
        transition = self.fleet.apply(replica, event, now)
        if transition is not None:
            worse = transition.after in (State.SUSPECT, State.EJECTED)
            log.log(
                logging.WARNING if worse else logging.INFO,
                "replica %s: %s -> %s (%s)",
                replica, transition.before, transition.after, transition.event,
            )  # fmt: skip

    def events_changed(self, replica: ReplicaId, status: SubscriptionStatus) -> None:
        """A replica's events were applied, or its subscription changed."""
        found = self.fleet[replica]
        found.trust = 1.0 if status.synced else UNSYNCED_TRUST
        found.held_tokens = self.tree.held_tokens(replica)
        if status.block_size is not None:
            found.block_size = status.block_size
            if status.total_blocks is not None:
                found.capacity_tokens = status.total_blocks * status.block_size

    def expire(self, now: float) -> None:
        """Drops predictions whose time is over, sweeps cleared caches; ten times a second."""
        while self._expiries and self._expiries[0][0] <= now:
            self.tree.drop(heapq.heappop(self._expiries)[2])
        for bound in self._bounds.values():
            for expired in bound.expire(now):
                self.tree.drop(expired)
        self.tree.sweep(_SWEEP_BLOCKS)

    def ended(
        self, assignment: "ReplicaAssignment", outcome: str, status: int, usage: AnswerUsage
    ) -> None:
        """An attempt is over: learn from it."""
        replica = assignment.replica_id
        self._metrics.attempts[self.name, replica, outcome].inc()
        now = asyncio.get_running_loop().time()
        state_event = _STATE_EVENTS.get(outcome)
        if state_event is not None:
            self.apply(replica, state_event, now)
        computed = outcome == Outcome.ANSWERED and status == 200
        if computed or outcome == Outcome.CLIENT_GONE:
            self.prefilled(assignment, now)
        elif assignment.prediction is not None:
            self.tree.drop(assignment.prediction)
        if status == 200 and usage.prompt_tokens is not None:
            self._learn(assignment, usage, now)

    def prefilled(self, assignment: "ReplicaAssignment", now: float) -> None:
        """Its prompt is computed: the events, if the replica sends any, are on their way."""
        if assignment.prediction is not None and assignment.replica_id not in self._bounds:
            self._expire(assignment.prediction, now + self._prediction.grace_s)

    def _learn(self, assignment: "ReplicaAssignment", usage: AnswerUsage, now: float) -> None:
        assert usage.prompt_tokens is not None
        replica, lease = assignment.replica_id, assignment.lease
        metrics = self._metrics
        metrics.prompt_tokens[self.name, replica].inc(usage.prompt_tokens)
        self.cost.observe_prompt(assignment.prompt_bytes, usage.prompt_tokens)
        if usage.completion_tokens is not None:
            metrics.completion_tokens[self.name, replica].inc(usage.completion_tokens)
            self.cost.observe_output(usage.completion_tokens)
        uncached = lease.uncached_tokens
        if usage.cached_tokens is not None:
            metrics.matched_tokens[self.name, replica].inc(assignment.matched_tokens)
            metrics.cached_tokens[self.name, replica].inc(usage.cached_tokens)
            error = abs(assignment.matched_tokens - usage.cached_tokens)
            metrics.match_error_tokens[self.name, replica].inc(error)
            uncached = usage.prompt_tokens - usage.cached_tokens
        if assignment.first_token_s is None:
            return
        ahead = lease.tokens_ahead - lease.uncached_tokens
        self.cost.observe_prefill(replica, ahead + uncached, assignment.first_token_s)
        steps = (usage.completion_tokens or 0) - 1
        if steps > 0 and lease.first_byte_at is not None:
            running = lease.replica.running + 1
            self.cost.observe_decode(replica, running, (now - lease.first_byte_at) / steps)

    def _expire(self, prediction: Prediction, at: float) -> None:
        heapq.heappush(self._expiries, (at, next(self._expiry_order), prediction))


class ReplicaAssignment:
    """One attempt on one replica: its lease, and what is learned when it ends."""

    def __init__(
        self,
        model: ServedModel,
        pool: ReplicaPool,
        decision: Decision,
        lease: Lease,
        prediction: Prediction | None,
        prompt_bytes: int,
        streaming: bool,
    ) -> None:
        self.replica_id = decision.replica
        self.matched_tokens = decision.matched_tokens
        self.pool = pool
        self.lease = lease
        self.prediction = prediction
        self.prompt_bytes = prompt_bytes
        self.first_token_s: float | None = None
        self._model = model
        self._streaming = streaming
        self._prefill_timer: asyncio.TimerHandle | None = None
        if not streaming:
            # An answer that comes whole does not show when its prompt was done: we assume what
            # the learned rates say, so that its prefill does not count as load until the end.
            rates = lease.replica.rates
            loop = asyncio.get_running_loop()
            self._prefill_timer = loop.call_later(
                rates.overhead_s + lease.tokens_ahead * rates.prefill_s_per_token,
                lambda: lease.first_byte(loop.time()),
            )

    def first_byte(self, now: float) -> None:
        if self._streaming:
            self.first_token_s = self.lease.first_byte(now)
            self._model.prefilled(self, now)

    def release(self, outcome: str, status: int, usage: AnswerUsage, now: float) -> None:
        if self._prefill_timer is not None:
            self._prefill_timer.cancel()
        self.lease.release(now)
        self._model.ended(self, outcome, status, usage)
