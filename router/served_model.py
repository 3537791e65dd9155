"""One model as the router serves it: its replicas, what they hold, how fast they are, who is next.

`ServedModel.assign` is the decision, one synchronous call: match, choose, lease, predict.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from random import Random

from prompt.assets import PromptAssets
from prompt.vocabulary import IdVocabulary
from protocol.load_report import LoadReport
from protocol.resume import RESUMES_BY_TOKENS, RESUMES_FIELD
from router.answer_learning import AnswerLearning
from router.config import ModelConfig, PredictionConfig
from router.control.subscription import SubscriptionStatus
from router.core.answer_scan import AnswerUsage
from router.core.believed_cache import BelievedCache
from router.core.cached_reports import CachedReports
from router.core.cost import CostModel
from router.core.event_delay import probe_end
from router.core.fleet import Fleet, Lease, Replica
from router.core.ids import Namespace, ReplicaId
from router.core.kv_index import KvIndex
from router.core.lease_board import LeaseBoard
from router.core.policies import make_policy
from router.core.policy import Decision, RouteQuery, work_of
from router.core.predictions import Predictions, RoutedPrompt
from router.core.prefix_tree import Match, PrefixTree
from router.core.states import State, StateEvent
from router.core.ticket import Work
from router.dataplane.http1 import ResponseHead
from router.dataplane.pool import ReplicaPool
from router.dataplane.route import Outcome, Rewriter
from router.event_caches import EventCaches
from router.metrics import RouterMetrics

log = logging.getLogger(__name__)

# What the end of an attempt says of the replica's health.
_STATE_EVENTS = {
    Outcome.ANSWERED: StateEvent.REQUEST_OK,
    Outcome.CONNECT_FAILED: StateEvent.REQUEST_FAILED_CONNECT,
    Outcome.BROKEN: StateEvent.REQUEST_FAILED_STREAM,
    Outcome.BROKEN_STREAM: StateEvent.REQUEST_FAILED_STREAM,
}


# Replicas in these states are live: what they hold could be used.
_LIVE = (State.READY, State.SUSPECT)
# Per call of `expire`, ten a second: each takes some ten microseconds, up to a hundred.
SWEEP_CHAINS = 32
# A request leaves two entries: its prediction's latest end, and the one after its answer.
_EXPIRED_PER_REQUEST = 3


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
        board: LeaseBoard | None = None,
    ) -> None:
        """
        Args:
            assets: The model's template and vocabulary; None: matching by plain text.
            board: Of its replicas, shared with the router's other workers; None: there are none.

        Raises:
            UnknownPolicy: the configured policy kind does not exist.
        """
        self.name = config.name
        self.config = config
        self.assets = assets
        self.tree = PrefixTree()
        self.index = KvIndex(self.tree, assets.vocabulary if assets else IdVocabulary())
        self.cost = CostModel()
        self.fleet = Fleet(board)
        self.load_reports: dict[ReplicaId, LoadReport] = {}
        self.goes_on_by_tokens: set[ReplicaId] = set()  # see protocol.resume
        self.goes_on_by_text = {
            one.id
            for one in config.replicas
            if (one.kv_events is not None if one.continues is None else one.continues)
        }
        self.subscriptions: dict[str, SubscriptionStatus] = {}  # by cache id: see router.core.ranks
        self.last_decision: Decision | None = None
        # Told when other replicas may get requests than before.
        self.routable_changed: Callable[[ServedModel, float], None] = lambda model, now: None
        self._policy = make_policy(config.policy.kind)
        self._pools = pools
        self._metrics = metrics
        self._learning = AnswerLearning(config.name, self.cost, metrics)
        self._rng = rng
        self._reports = {replica.id: CachedReports() for replica in config.replicas}
        # Of replicas without events: belief is all there is.
        ttl_s = prediction.without_events_ttl_s
        self._believed = {
            replica.id: BelievedCache(replica.cache_tokens, ttl_s, self._reports[replica.id])
            for replica in config.replicas
            if replica.kv_events is None
        }
        self._predictions = Predictions(
            self.tree, self._believed, ttl_s=prediction.ttl_s, grace_s=prediction.grace_s
        )
        for replica in config.replicas:
            # What events say is trusted once they are followed.
            trust = 1.0 if replica.kv_events is None else 0.0
            self.fleet.add(Replica(id=replica.id, rates=self.cost.rates(replica.id), trust=trust))
        self._event_caches = EventCaches(config.replicas, self.fleet, self.tree, self.subscriptions)
        for replica_id in self._believed:
            self._show_believed(replica_id)

    def assign(
        self,
        prompt: bytes | None,
        namespace: Namespace,
        *,
        output_tokens_max: int | None,
        streaming: bool,
        excluded: Collection[ReplicaId],
        now: float,
        ttft_target_s: float | None = None,
    ) -> "ReplicaAssignment":
        """Chooses a replica, takes its lease and remembers what it will soon hold.

        Args:
            prompt: None: the request has none we know; then load alone decides.
            streaming: Whether the answer's first byte is its first token.
            ttft_target_s: Seconds from now within which that is wanted.

        Raises:
            NoReplica: none may take it.
        """
        text = prompt or b""
        if ttft_target_s is not None:
            self.fleet.targets.came(ttft_target_s)
        self.fleet.settle(now)
        self.fleet.look_at_others()
        self._predictions.expire_some(now, _EXPIRED_PER_REQUEST)
        output_tokens = self.cost.expected_output_tokens(output_tokens_max)
        match = self._event_caches.by_replica(self.tree.match(namespace, text))
        decision = self._policy.choose(
            RouteQuery(
                prompt=text,
                match=match,
                bytes_per_token=self.cost.bytes_per_token,
                expected_output_tokens=output_tokens,
                excluded=excluded,
                now=now,
                ttft_target_s=ttft_target_s,
            ),
            self.fleet,
            self._rng,
        )
        self.last_decision = decision
        lease = self.fleet.lease(
            decision.replica,
            decision.uncached_tokens,
            output_tokens,
            now,
            matched_tokens=decision.matched_tokens,
        )
        if not streaming:
            self.fleet.assume_first_byte(lease, now + lease.expected_first_token_s)
        routed = None
        if text:
            end = self._probe_end(text, decision)
            routed = self._predictions.routed(decision.replica, namespace, text, now, end)
        return ReplicaAssignment(
            self,
            self._pools[decision.replica],
            decision,
            lease,
            routed,
            held_elsewhere_tokens=self._held_elsewhere_tokens(match, decision.replica),
            streaming=streaming,
        )

    def _probe_end(self, prompt: bytes, decision: Decision) -> int:
        if len(self.cache_ids(decision.replica)) > 1:
            return 0  # predictions do not know the rank that will answer
        return probe_end(
            len(prompt),
            decision.uncached_tokens,
            self.fleet[decision.replica].block_size,
            self.cost.bytes_per_token,
        )

    def _held_elsewhere_tokens(self, match: Match, chosen: ReplicaId) -> int:
        """The most of a prompt that any other live replica holds: by its events, or, without
        events, as we believe."""
        if not match.confirmed and not (match.predicted and self._believed):
            return 0
        held = {replica: found.tokens for replica, found in match.confirmed.items()}
        for replica, end in match.predicted.items():
            if replica in self._believed:
                held[replica] = int(end / self.cost.bytes_per_token)
        held.pop(chosen, None)
        return max(
            (tokens for replica, tokens in held.items() if self.fleet[replica].state in _LIVE),
            default=0,
        )

    def work_of(self, prompt: bytes, namespace: Namespace) -> Work:
        """What each replica would have to compute of a prompt, about."""
        match = self._event_caches.by_replica(self.tree.match(namespace, prompt))
        return work_of(RouteQuery(prompt, match, self.cost.bytes_per_token), self.fleet)

    def can_retry(self, excluded: set[ReplicaId]) -> bool:
        """Whether there is a routable replica not in `excluded`."""
        return any(replica.id not in excluded for replica in self.fleet.routable)

    def cache_ids(self, replica: ReplicaId) -> list[str]:
        """The names of its caches in the index: one for each data-parallel rank, usually one."""
        return self._event_caches.cache_ids([replica])

    def event_delay_s(self, replica: ReplicaId) -> float:
        """How long after a first token its KV events come, as far as was seen."""
        return self._predictions.event_delay_s(replica)

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
            self.routable_changed(self, now)

    def see_answer(self, replica: ReplicaId, head: ResponseHead) -> None:
        """What a probe's answer says of the replica, beside its health."""
        if head.has(RESUMES_FIELD, RESUMES_BY_TOKENS):
            self.goes_on_by_tokens.add(replica)
        else:
            self.goes_on_by_tokens.discard(replica)

    def events_changed(self, cache_id: str, _status: SubscriptionStatus) -> None:
        """Events of a replica or one of its ranks were applied, or a status in `subscriptions`
        has changed."""
        self._event_caches.changed(cache_id, asyncio.get_running_loop().time())

    def expire(self, now: float) -> None:
        """Drops predictions whose time is over, sweeps cleared caches, keeps the tree in bounds;
        ten times a second."""
        self.fleet.settle(now)
        self._predictions.expire(now)
        self._event_caches.refresh(now)
        for replica in self._believed:
            self._show_believed(replica)
        self.tree.sweep(SWEEP_CHAINS)
        live = [replica.id for replica in self.fleet.replicas if replica.state in _LIVE]
        self.tree.keep_within(
            self.config.max_prefix_tree_bytes, set(self._event_caches.cache_ids(live))
        )

    def prefilled(self, assignment: "ReplicaAssignment", now: float) -> None:
        """Its prompt is computed: the events, if the replica sends any, are on their way."""
        if assignment.first_token_s is not None:
            self._learning.first_token(assignment.lease, assignment.first_token_s)
        if assignment.routed is not None:
            self._predictions.computed(assignment.routed, now)

    def ended(
        self,
        assignment: "ReplicaAssignment",
        outcome: str,
        status: int,
        usage: AnswerUsage,
        now: float,
    ) -> None:
        """An attempt is over: learn from it."""
        replica = assignment.replica_id
        self._metrics.attempts[self.name, replica, outcome].inc()
        state_event = _STATE_EVENTS.get(outcome)
        if state_event is not None:
            self.apply(replica, state_event, now)
        good = status == 200 and outcome == Outcome.ANSWERED
        cached_tokens = None
        if good:
            if usage.prompt_tokens is not None:
                cached_tokens = self._reports[replica].read(usage.cached_tokens)
            self._learn(assignment, usage, cached_tokens, now)
        if assignment.routed is None:
            return
        if good or (outcome == Outcome.CLIENT_GONE and assignment.answering):
            self._predictions.answered(
                assignment.routed,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                cached_tokens=cached_tokens,
                bytes_per_token=self.cost.bytes_per_token,
                now=now,
            )
            if replica in self._believed:
                self._show_believed(replica)
        elif outcome == Outcome.CLIENT_GONE and replica not in self._believed:
            self._predictions.left(assignment.routed, now)
        else:
            self._predictions.failed(assignment.routed)

    def _learn(
        self,
        assignment: "ReplicaAssignment",
        usage: AnswerUsage,
        cached_tokens: int | None,
        now: float,
    ) -> None:
        self._learning.answered(
            assignment.lease,
            usage,
            prompt_bytes=len(assignment.routed.prompt) if assignment.routed is not None else 0,
            matched_tokens=assignment.matched_tokens,
            cached_tokens=cached_tokens,
            first_token_s=assignment.first_token_s,
            now=now,
        )
        had_tokens = assignment.matched_tokens if cached_tokens is None else cached_tokens
        if assignment.held_elsewhere_tokens > had_tokens:
            self._learning.recomputed(assignment.held_elsewhere_tokens - had_tokens)

    def _show_believed(self, replica: ReplicaId) -> None:
        """Policies see what a replica without events is believed to hold."""
        found, believed = self.fleet[replica], self._believed[replica]
        found.held_tokens = believed.held_tokens
        found.capacity_tokens = believed.capacity_tokens


class ReplicaAssignment:
    """One attempt on one replica: its lease, and what is learned when it ends."""

    def __init__(
        self,
        model: ServedModel,
        pool: ReplicaPool,
        decision: Decision,
        lease: Lease,
        routed: RoutedPrompt | None,
        *,
        held_elsewhere_tokens: int,
        streaming: bool,
    ) -> None:
        self.replica_id = decision.replica
        self.matched_tokens = decision.matched_tokens
        self.pool = pool
        self.lease = lease
        self.routed = routed
        self.held_elsewhere_tokens = held_elsewhere_tokens
        self.first_token_s: float | None = None
        self.answering = False
        self.body: bytes | None = None
        self.asks = b""
        self.rewriter: Rewriter | None = None
        self._model = model
        self._streaming = streaming

    @property
    def lost(self) -> bool:
        return self.lease.replica.state is State.EJECTED

    def first_byte(self, now: float, status: int) -> None:
        self.answering = True
        if self._streaming:
            good = status == 200
            waited_s = self.lease.first_byte(now, known=good)
            if good:
                self.first_token_s = waited_s
            self._model.prefilled(self, now)

    def release(self, outcome: str, status: int, usage: AnswerUsage, now: float) -> None:
        self.lease.release(now)
        self._model.ended(self, outcome, status, usage, now)
