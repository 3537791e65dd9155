"""A replica's state follows the table, and leases are counted exactly."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from router.core.cost import CostModel
from router.core.fleet import Fleet, Lease, Replica, UnknownReplica
from router.core.lease_board import LeaseBoard, board_bytes
from router.core.states import TRANSITIONS, State, StateEvent, after


def fleet_of(*names: str, state: State = State.READY, board: LeaseBoard | None = None) -> Fleet:
    fleet, cost = Fleet(board), CostModel()
    for name in names:
        fleet.add(Replica(id=name, rates=cost.rates(name), state=state))
    return fleet


@pytest.mark.parametrize(
    ("events", "state"),
    [
        pytest.param([], State.STARTING, id="new"),
        pytest.param(["probe_failed", "probe_ok"], State.READY, id="ready-at-first-good-probe"),
        pytest.param(["request_ok"], State.STARTING, id="old-requests-do-not-start-it"),
        pytest.param(
            ["probe_ok", "request_failed_connect"], State.EJECTED, id="refused-connection-ejects"
        ),
        pytest.param(["probe_ok", "request_failed_stream"], State.SUSPECT, id="broken-stream"),
        pytest.param(
            ["probe_ok", "request_failed_stream", "request_ok"], State.READY, id="only-one-broken"
        ),
        pytest.param(
            ["probe_ok", "request_failed_stream", "request_failed_stream"],
            State.EJECTED,
            id="two-broken-streams",
        ),
        pytest.param(["probe_ok", "probe_failed", "probe_failed"], State.EJECTED, id="two-probes"),
        pytest.param(
            ["probe_ok", "request_failed_connect", "probe_ok", "probe_ok"],
            State.READY,
            id="back-in-two-probes",
        ),
        pytest.param(
            ["probe_ok", "drain", "probe_ok", "request_failed_connect"],
            State.DRAINING,
            id="draining-stays",
        ),
        pytest.param(["drain", "undrain"], State.STARTING, id="undrained-must-be-probed"),
    ],
)
def test_events_lead_to_states(events: list[str], state: State) -> None:
    fleet = fleet_of("a", state=State.STARTING)
    for event in events:
        fleet.apply("a", StateEvent(event), now=1.0)
        fleet.check()
    assert fleet["a"].state is state


def test_every_state_can_be_drained_and_come_back_to_ready() -> None:
    for state in State:
        drained = after(state, StateEvent.DRAIN)
        assert drained is State.DRAINING
        back = after(after(drained, StateEvent.UNDRAIN), StateEvent.PROBE_OK)
        assert back is State.READY


def test_good_probes_bring_back_every_replica_that_is_not_drained() -> None:
    for state in set(State) - {State.DRAINING}:
        for _ in range(3):
            state = after(state, StateEvent.PROBE_OK)
        assert state is State.READY


def test_the_table_has_no_entry_that_changes_nothing() -> None:
    assert all(before is not found for (before, _), found in TRANSITIONS.items())


def test_suspects_get_requests_only_while_nobody_is_ready() -> None:
    fleet = fleet_of("a", "b")
    fleet.apply("a", StateEvent.PROBE_FAILED, now=1.0)
    assert [one.id for one in fleet.routable] == ["b"]
    fleet.apply("b", StateEvent.DRAIN, now=2.0)
    assert [one.id for one in fleet.routable] == ["a"]


def test_a_change_of_state_says_from_where_to_where_and_why() -> None:
    fleet = fleet_of("a")
    transition = fleet.apply("a", StateEvent.DRAIN, now=3.0)
    assert transition is not None
    assert (transition.before, transition.after) == (State.READY, State.DRAINING)
    assert fleet["a"].since == 3.0
    assert fleet.apply("a", StateEvent.DRAIN, now=4.0) is None
    assert fleet["a"].since == 3.0


def test_an_unknown_replica_is_named() -> None:
    fleet = fleet_of("a")
    with pytest.raises(UnknownReplica, match="'b'"):
        fleet.lease("b", 1, 1.0, now=0.0)
    assert fleet.apply("b", StateEvent.PROBE_OK, now=0.0) is None


def test_a_lease_counts_its_prompt_until_the_first_byte_and_itself_until_released() -> None:
    fleet = fleet_of("a")
    fleet.lease("a", 50, 10.0, now=0.0)
    lease = fleet.lease("a", 100, 10.0, now=0.0)
    rates = fleet["a"].rates
    two_steps_s = rates.overhead_s + rates.prefill_s(150, 50 * 25 + 100 * 50)
    assert lease.expected_first_token_s == pytest.approx(two_steps_s)
    assert (fleet["a"].pending_prefill_tokens, fleet["a"].running) == (150, 2)
    assert lease.first_byte(now=0.5) == 0.5
    assert lease.first_byte(now=0.6) is None
    assert (fleet["a"].pending_prefill_tokens, fleet["a"].running) == (50, 2)
    assert lease.release(now=2.0)
    assert not lease.release(now=2.0)
    assert lease.first_byte(now=3.0) is None
    assert (fleet["a"].pending_prefill_tokens, fleet["a"].running) == (50, 1)
    fleet.check()


def test_a_lease_occupies_prompt_and_answer_until_it_ends() -> None:
    fleet = fleet_of("a")
    lease = fleet.lease("a", 50, 10.4, now=0.0, matched_tokens=32)
    assert fleet["a"].occupied_tokens == lease.occupied_tokens == 92
    lease.first_byte(now=1.0)
    assert fleet["a"].occupied_tokens == 92
    lease.release(now=2.0)
    assert fleet["a"].occupied_tokens == 0


def test_what_a_step_has_done_of_its_prompts_is_not_ahead_of_the_next_one() -> None:
    fleet = fleet_of("a")
    one = fleet["a"]
    token_s, step_s = one.rates.prefill_s_per_token, one.rates.overhead_s
    first = fleet.lease("a", 1000, 1.0, now=10.0)
    second = fleet.lease("a", 600, 1.0, now=10.0)
    third = fleet.lease("a", 100, 1.0, now=10.0)
    assert one.backlog_s(10.0) == pytest.approx(step_s + 1700 * token_s)
    assert one.backlog_s(10.0 + 400 * token_s) == pytest.approx(step_s + 1300 * token_s)
    assert one.backlog_s(99.0) == pytest.approx(700 * token_s), "others came when it had begun"
    third.first_byte(now=99.0)  # the oldest one was overtaken
    assert one.backlog_s(99.0) == pytest.approx(step_s + 1600 * token_s), "a step begins"
    later = 99.0 + 1600 * token_s
    assert one.backlog_s(later) == pytest.approx(step_s), "with both of them"
    assert one.backlog_s(200.0) == 0.0
    fourth = fleet.lease("a", 50, 1.0, now=later)
    assert fourth.expected_first_token_s == pytest.approx(2 * step_s + 50 * token_s)
    assert one.backlog_s(200.0) == pytest.approx(50 * token_s)
    first.first_byte(now=100.0)
    assert one.backlog_s(100.0) == pytest.approx(step_s + 650 * token_s)
    second.release(now=101.0)
    assert one.backlog_s(101.0) == pytest.approx(step_s + 50 * token_s)
    fleet.check()


def test_a_lease_knows_how_long_its_prompt_was_computed() -> None:
    fleet = fleet_of("a")
    first, second = (fleet.lease("a", 100, 1.0, now=when) for when in (10.0, 11.0))
    assert (first.alone, second.alone) == (True, False)
    first.first_byte(now=12.0)
    second.first_byte(now=12.5)
    assert (first.busy_s, second.busy_s) == (2.0, 0.5)
    third = fleet.lease("a", 100, 1.0, now=20.0)
    assert third.alone
    third.first_byte(now=21.0)
    assert third.busy_s == 1.0, "nobody was served before it came"


def test_a_lease_that_another_passed_was_not_alone() -> None:
    fleet = fleet_of("a")
    first, second = (fleet.lease("a", 100, 1.0, now=when) for when in (10.0, 11.0))
    second.first_byte(now=12.0)
    first.first_byte(now=14.0)
    assert not first.alone, "the replica computed 200 tokens in its four seconds"


def test_a_first_byte_that_nobody_saw_tells_no_speed() -> None:
    fleet = fleet_of("a")
    first, second, third = (fleet.lease("a", 100, 1.0, now=when) for when in (10.0, 11.0, 12.0))
    first.first_byte(now=12.0, known=False)
    second.release(now=13.0)
    third.first_byte(now=15.0)
    assert (first.busy_s, second.busy_s, third.busy_s) == (None, None, 2.0)


def test_what_other_workers_send_there_makes_it_neither_alone_nor_timed() -> None:
    memory = memoryview(bytearray(board_bytes(2, 1)))
    ours, theirs = (
        fleet_of("a", board=LeaseBoard(memory, ["a"], workers=2, worker=number))
        for number in range(2)
    )
    theirs.lease("a", 100, 1.0, now=0.0)
    ours.look_at_others()
    lease = ours.lease("a", 100, 1.0, now=0.0)
    lease.first_byte(now=1.0)
    assert (lease.alone, lease.busy_s) == (False, None)


class Leases(RuleBasedStateMachine):
    """Replicas come and go; leases are taken, get a first byte, end, twice and in any order."""

    @initialize()
    def start(self) -> None:
        self.fleet = fleet_of("a", "b")
        self.cost = CostModel()
        self.leases: list[Lease] = []

    @rule(name=st.sampled_from("ab"), tokens=st.integers(0, 100))
    def take(self, name: str, tokens: int) -> None:
        if name in self.fleet:
            self.leases.append(self.fleet.lease(name, tokens, 10.0, now=0.0))

    @rule(pick=st.integers(0, 100), ends=st.booleans())
    def go_on(self, pick: int, ends: bool) -> None:
        if self.leases:
            lease = self.leases[pick % len(self.leases)]
            if ends:
                lease.release(now=2.0)
            else:
                lease.first_byte(now=1.0)

    @rule(name=st.sampled_from("ab"))
    def come_or_go(self, name: str) -> None:
        if name in self.fleet:
            self.fleet.remove(name)
        else:
            self.fleet.add(Replica(id=name, rates=self.cost.rates(name)))

    @rule(name=st.sampled_from("ab"), event=st.sampled_from(list(StateEvent)))
    def happen(self, name: str, event: StateEvent) -> None:
        self.fleet.apply(name, event, now=1.0)

    @invariant()
    def it_is_whole(self) -> None:
        if hasattr(self, "fleet"):
            self.fleet.check()

    def teardown(self) -> None:
        if hasattr(self, "fleet"):
            for lease in self.leases:
                lease.release(now=9.0)
            self.fleet.check()
            assert self.fleet.leases == 0
            assert all(one.replica.running == 0 for one in self.leases)


TestLeases = Leases.TestCase
TestLeases.settings = settings(
    max_examples=60, stateful_step_count=30, derandomize=True, deadline=None
)
