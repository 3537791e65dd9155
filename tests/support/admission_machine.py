"""Admission beside plain lists that say what it should do: a machine of things that happen."""

from collections import Counter
from collections.abc import Sequence

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocol.errors import Overloaded
from router.core.admission import Admission
from router.core.admission_queue import QueueOrder
from router.core.ticket import Ticket, TicketState, Work
from tests.support.admission_checks import AdmissionChecks
from tests.support.admission_model import AdmissionModel

# Few of everything, so that everything meets everything.
MODELS = st.sampled_from(["m", "n"])
TENANTS = st.sampled_from(["a", "b", "c"])
PRIORITIES = st.sampled_from([0, 0, 0, 0, 1, 1, -1, 8, -8, 99, -99])
TOKENS = st.sampled_from([1, 2, 3, 3, 4, 5, 8])
LIMITS = st.sampled_from([6, 6, 4, 7, None])
ORDERS = st.sampled_from(["response_ratio", "response_ratio", "fcfs"])
# What is cached of a prompt: the work where nothing is, then on two of the replicas.
WORKS = st.sampled_from(
    [None, (8, 8, 8), (8, 2, 8), (8, 8, 1), (64, 4, 16), (64, 64, 2), (1, 1, 1)]
)
PICKS = st.integers(0, 1000)
TIMEOUT_S = 8


class AdmissionAgainstLists(RuleBasedStateMachine, AdmissionChecks):
    @initialize(
        max_tokens=st.sampled_from([8, 15, 6, None]),
        queue_requests=st.sampled_from([100, 100, 100, 8, 3, 0]),
        queue_bytes=st.sampled_from([1000, 1000, 20]),
        aging_s=st.sampled_from([None, None, 2, 5]),
        quantum=st.sampled_from([1, 4, 16]),
        queue_order=ORDERS,
        limits=st.lists(LIMITS, min_size=4, max_size=4),
    )
    def start(
        self,
        max_tokens: int | None,
        queue_requests: int,
        queue_bytes: int,
        aging_s: float | None,
        quantum: int,
        queue_order: QueueOrder,
        limits: list[int | None],
    ) -> None:
        self.queue_requests, self.queue_bytes, self.quantum = queue_requests, queue_bytes, quantum
        self.admission = Admission(
            max_tokens=max_tokens,
            queue_requests=queue_requests,
            queue_bytes=queue_bytes,
            queue_timeout_s=TIMEOUT_S,
            aging_s=aging_s,
            quantum_tokens=quantum,
            queue_order=queue_order,
        )
        self.model = AdmissionModel(max_tokens, aging_s, TIMEOUT_S)
        self.now = 0.0
        self.over: list[Ticket] = []
        self.works: dict[Ticket, tuple[int, int, int]] = {}
        self.counts: Counter[str] = Counter()
        # Admitted since the replicas last changed: room is kept for each.
        self.promised: set[Ticket] = set()
        # By model, level and pair of tenants who both wait there: how much more the first got,
        # now, at least and at most.
        self.leads: dict[tuple[str, int, str, str], tuple[int, int, int]] = {}
        self.added = len(limits)
        for index, limit in enumerate(limits):
            model = "mn"[index % 2]
            self.add(model, f"{model}{index}", limit)
        for model in "mn":
            self.route(model, list(self.model.limits[model]))

    def add(self, model: str, replica: str, limit: int | None) -> None:
        self.admission.capacity.add_replica(model, replica, limit)
        self.model.limits.setdefault(model, {})[replica] = limit
        self.model.routable.setdefault(model, [])

    def route(self, model: str, replicas: list[str]) -> None:
        self.admission.capacity.set_routable(model, replicas)
        self.model.routable[model] = replicas
        self.promised = {ticket for ticket in self.promised if ticket.model != model}

    # What happens

    @rule(
        model=MODELS,
        tokens=TOKENS,
        tenant=TENANTS,
        priority=PRIORITIES,
        body_bytes=st.sampled_from([0, 1, 9, 25]),
        later=st.booleans(),
        work=WORKS,
    )
    def offer(
        self,
        model: str,
        tokens: int,
        tenant: str,
        priority: int,
        body_bytes: int,
        later: bool,
        work: tuple[int, int, int] | None,
    ) -> None:
        ticket = Ticket(model, tokens, tenant, priority, body_bytes)
        if work is not None:
            self.works[ticket] = work
            ticket.work = lambda: self.work_of(ticket)
        before, level = self.model, max(-8, min(8, priority))
        fits = before.fits_a_replica(model, tokens) and before.fits_the_limit(tokens)
        before.age(self.now, level)
        waits = self.waits_before(model, level)
        shed = before.shed_for(ticket, self.queue_requests, self.queue_bytes)
        told, refusal = self.offered(ticket)
        if refusal is not None:
            assert shed is None
            assert refusal.retry_after_s is not None
            assert 1.0 <= refusal.retry_after_s <= 60.0
            assert ticket.state is TicketState.REFUSED
            assert not fits or waits or self.blocked_at_the_limit(level, model)
            self.over.append(ticket)
            self.counts["refused"] += 1
            return
        if ticket.state is TicketState.ADMITTED:
            assert fits
            assert not told
            assert not waits, "nobody overtakes those of its level"
            assert not self.blocked_at_the_limit(level - 1, model), "nor the more urgent"
            self.admitted(ticket, later)
            return
        assert ticket.state is TicketState.WAITING
        blocked = self.blocked_at_the_limit(level, model)
        assert not fits or waits or blocked, "it waits only if it has to"
        assert shed is not None
        assert list(told) == [one.ticket for one in shed]
        for one in told:
            self.turned_away(one, TicketState.SHED)
        self.model.wait(ticket, self.now)
        self.counts["queued"] += 1
        self.pump(later)

    def offered(self, ticket: Ticket) -> tuple[Sequence[Ticket], Overloaded | None]:
        try:
            return self.admission.offer(ticket, self.now), None
        except Overloaded as error:
            return (), error

    def waits_before(self, model: str, level: int) -> bool:
        """Whether someone of this model waits in this level or a more urgent one."""
        own = self.model.most_urgent(model)
        return own is not None and own <= level

    @rule(
        model=MODELS,
        requests=st.lists(st.tuples(TOKENS, TENANTS, WORKS), min_size=4, max_size=20),
        priority=PRIORITIES,
        later=st.booleans(),
    )
    def many_come(
        self,
        model: str,
        requests: list[tuple[int, str, tuple[int, int, int] | None]],
        priority: int,
        later: bool,
    ) -> None:
        for tokens, tenant, work in requests:
            self.offer(model, tokens, tenant, priority, 1, later, work)

    def work_of(self, ticket: Ticket) -> Work:
        most, *least = self.works[ticket]
        replicas = zip(self.model.limits[ticket.model], least, strict=True)
        less = {replica: tokens for replica, tokens in replicas if tokens < most}
        return Work.of(most, less)

    @precondition(lambda self: self.model.waiting)
    @rule(pick=PICKS, work=WORKS, count=st.sampled_from([1, 3, 100]), later=st.booleans())
    def caches_change(
        self, pick: int, work: tuple[int, int, int] | None, count: int, later: bool
    ) -> None:
        ticket = self.model.waiting[pick % len(self.model.waiting)].ticket
        if ticket in self.works and work is not None:
            self.works[ticket] = work
        self.admission.queue.look(count)
        self.pump(later)

    @rule(seconds=st.sampled_from([0, 1, 1, 2, 2, 3, 9]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(later=st.booleans())
    def expire(self, later: bool) -> None:
        due = [one for one in self.model.waiting if one.arrived + TIMEOUT_S <= self.now]
        told = self.admission.expire(self.now)
        assert told == [one.ticket for one in due]
        for one in told:
            assert one.waited_s >= TIMEOUT_S
            self.turned_away(one, TicketState.EXPIRED)
        self.pump(later)

    @precondition(lambda self: self.model.waiting)
    @rule(pick=PICKS, later=st.booleans(), by_finish=st.booleans())
    def withdraw(self, pick: int, later: bool, by_finish: bool) -> None:
        ticket = self.model.waiting[pick % len(self.model.waiting)].ticket
        leave = self.admission.finish if by_finish else self.admission.withdraw
        assert leave(ticket, self.now)
        assert ticket.state is TicketState.WITHDRAWN
        self.end(ticket, "withdrawn")
        self.pump(later)

    @precondition(lambda self: self.model.admitted)
    @rule(pick=PICKS, later=st.booleans())
    def finish(self, pick: int, later: bool) -> None:
        ticket = self.model.admitted[pick % len(self.model.admitted)].ticket
        assert self.admission.finish(ticket, self.now)
        assert ticket.state is TicketState.FINISHED
        self.end(ticket, "finished")
        over = self.over[pick % len(self.over)]
        assert not self.admission.finish(over, self.now), "it is over once"
        assert not self.admission.withdraw(over, self.now)
        self.pump(later)

    @rule(picks=st.lists(PICKS, min_size=3, max_size=20))
    def many_finish(self, picks: list[int]) -> None:
        for pick in picks:
            if self.model.admitted:
                self.finish(pick, False)

    @precondition(lambda self: self.model.admitted)
    @rule(pick=PICKS, where=PICKS, later=st.booleans())
    def place_or_move(self, pick: int, where: int, later: bool) -> None:
        self.place(self.model.admitted[pick % len(self.model.admitted)].ticket, where)
        self.pump(later)

    @rule(
        model=MODELS,
        kept=st.sampled_from([(True, True), (True, False), (False, True), (False, False)]),
        pick=PICKS,
        limit=LIMITS,
        what=st.sampled_from(["routable", "limit", "replace"]),
        later=st.booleans(),
    )
    def replicas_change(
        self,
        model: str,
        kept: tuple[bool, bool],
        pick: int,
        limit: int | None,
        what: str,
        later: bool,
    ) -> None:
        replicas = list(self.model.limits[model])
        changed = replicas[pick % len(replicas)]
        if what == "limit":
            self.admission.capacity.set_limit(model, changed, limit)
            self.model.limits[model][changed] = limit
            self.promised.clear()
        elif what == "replace":
            self.admission.capacity.remove_replica(model, changed)
            del self.model.limits[model][changed]
            self.added += 1
            self.add(model, f"{model}{self.added}", limit)
        if what != "limit":
            pairs = zip(self.model.limits[model], kept, strict=True)
            self.route(model, [replica for replica, keep in pairs if keep])
        self.pump(later)

    @rule(model=MODELS)
    def replicas_are_back(self, model: str) -> None:
        self.route(model, list(self.model.limits[model]))
        self.pump(False)

    # What follows

    def pump(self, later: bool) -> None:
        """Until nobody can run. Those admitted are placed at once, or later."""
        while True:
            self.model.age(self.now)
            room = {
                one.ticket: self.model.fits_a_replica(one.ticket.model, one.ticket.tokens)
                and self.model.fits_the_limit(one.ticket.tokens)
                for one in self.model.waiting
            }
            roomy = self.roomy()
            ticket = self.admission.admit_next(self.now)
            if ticket is None:
                break
            assert room[ticket], "it fits"
            self.was_served(ticket, roomy[ticket.model])
            self.admitted(ticket, later)
        self.nothing_waits_that_could_run()

    def admitted(self, ticket: Ticket, later: bool) -> None:
        assert ticket.state is TicketState.ADMITTED
        self.model.admit(ticket)
        self.counts["admitted"] += 1
        self.promised.add(ticket)
        if not later:
            self.place(ticket, 0)

    def place(self, ticket: Ticket, where: int) -> None:
        """As a policy would: on one that is not excluded."""
        entry, model = self.model.entry(ticket), ticket.model
        tried = [] if entry.replica is None else [entry.replica]
        excluded = self.admission.excluded(ticket, tried)
        beside = 0 if entry.replica is None else self.model.unplaced(model)
        room = [
            one
            for one in self.model.routable[model]
            if one not in tried and self.model.has_room(model, one, ticket.tokens, beside)
        ]
        allowed = [one for one in self.model.routable[model] if one not in excluded]
        kept = ticket.kept if entry.replica is None else ()
        if room:
            assert allowed == ([one for one in room if one not in kept] or room)
        else:
            assert ticket not in self.promised or entry.replica is not None, "room was kept"
            assert set(excluded) == set(tried)
        if not allowed:
            return
        chosen = allowed[where % len(allowed)]
        if not room:  # beyond a limit: what was promised to others may be gone
            self.promised.clear()
        self.admission.take(ticket, chosen)
        entry.replica = chosen
        limit, in_flight = self.model.limits[model][chosen], self.model.in_flight(chosen)
        if room and limit is not None:
            assert in_flight <= max(limit, ticket.tokens), "a limit holds, but for the too large"

    def turned_away(self, ticket: Ticket, state: TicketState) -> None:
        assert ticket.state is state
        refusal = self.admission.refusal(ticket, self.now)
        assert refusal.status == 429
        assert refusal.retry_after_s is not None
        assert 1.0 <= refusal.retry_after_s <= 60.0
        self.end(ticket, state)

    def end(self, ticket: Ticket, how: str) -> None:
        self.model.end(ticket)
        self.promised.discard(ticket)
        self.over.append(ticket)
        self.counts[how] += 1
        self.see_leads()

    @invariant()
    def all_is_as_the_lists_say(self) -> None:
        if not hasattr(self, "admission"):
            return
        admission, model = self.admission, self.model
        admission.check()
        repr(admission)
        assert set(admission.queue) == {one.ticket for one in model.waiting}
        assert set(admission.capacity) == {one.ticket for one in model.admitted}
        assert admission.queue.requests <= self.queue_requests
        assert admission.queue.body_bytes <= self.queue_bytes
        in_flight = admission.capacity.in_flight_tokens
        largest = max((one.ticket.tokens for one in model.admitted), default=0)
        if model.max_tokens is not None:
            assert in_flight <= max(model.max_tokens, largest)
        counters = admission.counters
        for what in ("admitted", "queued", "refused", "shed", "expired", "withdrawn"):
            assert getattr(counters, what) == self.counts[what], what
