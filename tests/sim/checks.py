"""What must hold in every world, whatever goes wrong in it.

leases      of every replica as many as there are requests there; none in the end
requests    each ends exactly once, and its answer is the unbroken one, as far as it came
retries     none after its first byte, unless it goes on where it broke; within attempts and budget
claims      the tree claims what some event has said; a followed cache's part is exactly what the
            replica held after the last batch applied, and in the end what it holds
choices     a drained, ejected or starting replica gets nothing new; a suspect one only while none
            is ready
bounds      of queues, requests in flight, connections
"""

from collections.abc import Collection
from typing import TYPE_CHECKING

from protocol.resume import RESUME_KEY
from router.control.subscription import SubscriptionStatus
from router.core.ids import Namespace, ReplicaId
from router.core.states import State
from router.dataplane.request_reader import BUG
from router.dataplane.route import UnderWay
from tests.sim.replica import Kind, SimReplica

if TYPE_CHECKING:
    from tests.sim.worker import Worker
    from tests.sim.world import World

_OFTEN, _SELDOM = 16, 128
# Waits are looked after twice, queues ten times a second.
_SWEEP_S = 0.6
_MARK = b"x-sim-request: "
_RESUMES = (RESUME_KEY.encode(), b'"continue_final_message":true')


class Checks:
    """Told of what matters as it happens, and looks at everything now and then."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def after_turn(self) -> None:
        """All that was ready has run."""
        world = self._world
        turns = world.loop.turns
        if world.loop.failures:
            world.failed(world.loop.failures.pop())
        if turns % _OFTEN == 0:
            for worker in world.workers:
                self._worker(worker)
        if turns % _SELDOM == 0:
            self.everything()

    def everything(self) -> None:
        for worker in self._world.workers:
            self._worker(worker)
            worker.model.tree.check()
            for believed in worker.model._believed.values():
                believed.check()
        for replica in self._world.replicas.values():
            replica.check()

    def _worker(self, worker: "Worker") -> None:
        """What is cheap to look at."""
        handler, fleet = worker.handler, worker.model.fleet
        fleet.check()
        if handler.gate.limited:
            admission, now = handler.gate.admission, self._world.loop.time()
            admission.check()
            longest_s = worker.config.admission.queue_timeout_s + _SWEEP_S
            for ticket in admission.queue:
                assert now - ticket.offered_at < longest_s, "no request waits longer than it may"
        handler.retry_budget.check()
        worker.model.cost.check()
        if fleet._board is not None:
            fleet._board.check()
        for status in worker.model.subscriptions.values():
            status.staleness.check()
        for pool in worker.pools.values():
            pool.check()
        limits = worker.config.limits
        assert 0 <= handler.in_flight <= limits.max_requests, "requests in flight are bounded"
        assert handler.opened - handler.ended == handler.in_flight, "each request ends once"
        served = sum(one._exchange is not None for one in handler.server._connections)
        assert handler.in_flight == served, "a request ends when its client leaves"
        attempts_each = 2 if handler.hedge_after_s is not None else 1
        assert fleet.leases <= attempts_each * handler.in_flight, "no lease without a request"

    # Retries

    def asked(self, worker: "Worker", replica: ReplicaId, data: bytes) -> None:
        """The router has written this to a replica."""
        at = data.find(_MARK)
        if at < 0 or not worker.alive:
            return
        world = self._world
        ask = world.asks[int(data[at + len(_MARK) : data.index(b"\r", at)])]
        goes_on = any(mark in data for mark in _RESUMES) or (
            bool(ask.attempts) and not ask.chat and self._longer_prompt(ask.number, data)
        )
        world.journal.add(worker.process.name, f"asks {replica} for {ask.number}, {goes_on=}")
        if ask.has_begun and not goes_on:
            world.fail("retries", f"request {ask.number} is retried after its first byte")
        if ask.outcomes and ask.outcomes != ["left"]:
            world.fail("requests", f"request {ask.number} is over, and {replica} is asked for it")
        ask.attempts.append((replica, goes_on))

    def _longer_prompt(self, number: int, data: bytes) -> bool:
        """Whether a completion's prompt has the text behind it that was said."""
        fields = self._world.asks[number].fields
        own = fields["prompt"]
        return (
            isinstance(own, str)
            and b'"prompt":"' in data
            and (f'"prompt":"{own}"'.encode() not in data)
        )

    def finished(self, worker: "Worker", exchange: UnderWay) -> None:
        """A request is over, as the router sees it."""
        if not worker.alive:
            return
        legs = 1 + exchange.resumes
        most = worker.handler.max_attempts * legs
        if exchange.attempts > most:
            self._world.fail("retries", f"{exchange.attempts} attempts, {most} are allowed")
        if exchange.resumes > worker.handler.resume.max_resumes:
            self._world.fail("retries", f"it was resumed {exchange.resumes} times")
        if exchange.failure == BUG:
            self._world.fail("requests", "a bug of the router's has shown")
        if exchange.attempts == 1 and "cannot connect" in (exchange.failure or ""):
            self._could_retry(worker, exchange)
        total_s = worker.config.timeouts.total_s
        took_s = self._world.loop.time() - exchange.request.started_at
        if total_s is not None and took_s > total_s + _SWEEP_S:
            self._world.fail("bounds", f"a request took {took_s:.1f} s, {total_s} s are allowed")

    def _could_retry(self, worker: "Worker", exchange: UnderWay) -> None:
        """It has failed where nobody listened: then nobody else was there, or allowed."""
        handler, now = worker.handler, self._world.loop.time()
        others = [one.id for one in worker.model.fleet.routable if one.id != exchange.replica_id]
        allowed = handler.max_attempts > 1 and handler.retry_budget.affords_retry(now)
        if exchange.status == 503 and others and allowed:
            self._world.fail("retries", f"a request was given up, and {others} were there")

    # Choices

    def before_choice(self, worker: "Worker", namespace: Namespace, prompt: bytes) -> None:
        world = self._world
        match = worker.model.tree.match(namespace, prompt)
        for cache_id, found in match.confirmed.items():
            if prompt[: found.end] not in world.replicas[cache_id].published:
                world.fail(
                    "claims", f"nobody has said that {cache_id} holds {prompt[: found.end]!r}"
                )

    def chosen(self, worker: "Worker", replica: ReplicaId, excluded: Collection[ReplicaId]) -> None:
        if not worker.alive:
            return
        world, fleet = self._world, worker.model.fleet
        state = fleet[replica].state
        world.journal.add(worker.process.name, f"chooses {replica} ({state})")
        if replica in worker.drained:
            world.fail("choices", f"{replica} is drained, and gets a request")
        if state not in (State.READY, State.SUSPECT):
            world.fail("choices", f"{replica} is {state}, and gets a request")
        if state is State.SUSPECT and any(one.state is State.READY for one in fleet.replicas):
            world.fail("choices", f"{replica} is suspect, others are ready, and it gets a request")
        if replica in excluded:
            world.fail("choices", f"{replica} is excluded, and gets a request")

    # Claims

    def events_applied(self, worker: "Worker", cache_id: str, status: SubscriptionStatus) -> None:
        """Compared where it is certain what the replica held: it is followed, and lives on."""
        world = self._world
        subscriber = worker.post.subscribers.get(cache_id)
        replica = world.replicas[cache_id]
        if not worker.alive or not status.synced or subscriber is None:
            return
        if subscriber.life != replica.life or not replica.up or subscriber._changes:
            return
        seq = -1 if status.seq is None else status.seq
        self._compare(worker, replica, replica.engine.held_after.get(seq), f"after batch {seq}")

    def _compare(
        self, worker: "Worker", replica: SimReplica, held: frozenset[int] | None, when: str
    ) -> None:
        claimed = claimed_of(worker, replica.name)
        if held is None:
            self._world.fail("claims", f"{replica.name} has not published {when}")
            return
        exact = replica.spec.kind is Kind.OURS and worker.config.models[0].max_prefix_tree_bytes > (
            1 << 20
        )
        wrong = claimed ^ held if exact else claimed - held
        if wrong:
            more, less = len(claimed - held), len(held - claimed)
            self._world.fail(
                "claims",
                f"{worker.process.name} claims {more} blocks too many and {less} too few of"
                f" {replica.name} {when}",
            )

    # The end

    def healed(self) -> None:
        """Faults are over, streams are followed, all batches have come: every claim is true."""
        for worker in self._world.workers:
            for replica in self._world.replicas.values():
                if replica.spec.kind is Kind.PLAIN:
                    continue
                held = frozenset(replica.engine.scheduler.pool._by_hash)
                self._compare(worker, replica, held, "in the end")
                self._matches(worker, replica)

    def _matches(self, worker: "Worker", replica: SimReplica) -> None:
        """What is claimed is found by its text, in one of the namespaces."""
        tree, claimed = worker.model.tree, claimed_of(worker, replica.name)
        for name, text in replica.engine.texts.items():
            if name not in claimed or replica.spec.kind is not Kind.OURS:
                continue  # below a block that is not known, it is claimed and not found
            found = (
                tree.match(namespace, text + b"\0").confirmed.get(replica.name)
                for namespace in tree._radix.roots
            )
            if all(one is None or one.end != len(text) for one in found):
                self._world.fail("claims", f"{replica.name} holds {text!r}, and it is not found")

    def over(self) -> None:
        """Nobody asks any more, and all that was believed is too old."""
        world = self._world
        self.everything()
        for ask in world.asks:
            if len(ask.outcomes) != 1:
                world.fail("requests", f"request {ask.number} ended {ask.outcomes}")
        for worker in world.workers:
            handler, model = worker.handler, worker.model
            fleet = model.fleet
            self._nought("leases", worker, "leases", fleet.leases)
            self._nought("requests", worker, "requests in flight", handler.in_flight)
            admission = handler.gate.admission
            self._nought("bounds", worker, "tokens", admission.capacity.in_flight_tokens)
            self._nought("bounds", worker, "requests that wait", admission.queue.requests)
            fleet.look_at_others()
            for replica in fleet.replicas:
                left = (
                    replica.running, replica.pending_prefill_tokens,
                    replica.other_running, replica.other_prefill_tokens,
                )  # fmt: skip
                self._nought("leases", worker, f"work at {replica.id}", sum(map(abs, left)))
            most_bytes = worker.config.models[0].max_prefix_tree_bytes
            if model.tree.bytes_resident > most_bytes:
                world.fail("bounds", f"the tree has {model.tree.bytes_resident} bytes")
            for holder in model.tree._holders.values():
                count = len(holder.predictions)
                self._nought("claims", worker, f"predictions of {holder.replica}", count)
            for name, pool in worker.pools.items():
                busy = pool.open_connections - pool.idle_connections
                self._nought("bounds", worker, f"busy connections to {name}", busy)
        for name, one in world.replicas.items():
            if one.engine.scheduler.has_work:
                world.fail("requests", f"{name} still works for nobody")

    def _nought(self, check: str, worker: "Worker", what: str, count: int) -> None:
        if count:
            self._world.fail(check, f"{worker.process.name} has {count} {what} left in the end")


def claimed_of(worker: "Worker", cache_id: str) -> frozenset[int]:
    """Names of the blocks that a cache is claimed to hold."""
    holder = worker.model.tree._holders.get(cache_id)
    if holder is None:
        return frozenset()
    return frozenset(
        name
        for chain in holder.chains.values()
        for index, name in enumerate(chain.hashes)
        if any(chain.copies(index))
    )
