"""Workers see each other's leases exactly, and a dead one's are gone."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from router.core.cost import CostModel
from router.core.fleet import Fleet, Lease, Replica
from router.core.lease_board import InFlight, LeaseBoard, board_bytes, clear_row

REPLICAS = ["r0", "r1", "r2"]
WORKERS = 3


def fleet_of(memory: bytearray, worker: int) -> Fleet:
    board = LeaseBoard(memoryview(memory), REPLICAS, workers=WORKERS, worker=worker)
    fleet = Fleet(board)
    cost = CostModel()
    for name in REPLICAS:
        fleet.add(Replica(id=name, rates=cost.rates(name)))
    return fleet


class WorkersShareABoard(RuleBasedStateMachine):
    """Whatever leases are taken and end, and whichever workers die, all see the same load."""

    @initialize()
    def start(self) -> None:
        self.memory = bytearray(board_bytes(WORKERS, len(REPLICAS)))
        self.fleets = [fleet_of(self.memory, worker) for worker in range(WORKERS)]
        self.leases: list[list[Lease]] = [[] for _ in range(WORKERS)]

    @rule(
        worker=st.integers(0, WORKERS - 1),
        replica=st.sampled_from(REPLICAS),
        tokens=st.integers(0, 10**7),
        cached=st.integers(0, 10**7),
    )
    def take(self, worker: int, replica: str, tokens: int, cached: int) -> None:
        fleet = self.fleets[worker]
        self.leases[worker].append(fleet.lease(replica, tokens, 1.0, 0.0, matched_tokens=cached))

    @rule(worker=st.integers(0, WORKERS - 1), data=st.data())
    def end(self, worker: int, data: st.DataObject) -> None:
        if self.leases[worker]:
            lease = data.draw(st.sampled_from(self.leases[worker]))
            if data.draw(st.booleans()):
                lease.first_byte(1.0)
            else:
                lease.release(1.0)
                self.leases[worker].remove(lease)

    @rule(worker=st.integers(0, WORKERS - 1))
    def die(self, worker: int) -> None:
        clear_row(memoryview(self.memory), len(REPLICAS), worker)
        self.fleets[worker] = fleet_of(self.memory, worker)
        self.leases[worker] = []

    @invariant()
    def all_see_the_same(self) -> None:
        running = dict.fromkeys(REPLICAS, 0)
        prefills = dict.fromkeys(REPLICAS, 0)
        pending = dict.fromkeys(REPLICAS, 0)
        pairs = dict.fromkeys(REPLICAS, 0)
        occupied = dict.fromkeys(REPLICAS, 0)
        for lease in (one for leases in self.leases for one in leases):
            running[lease.replica.id] += 1
            occupied[lease.replica.id] += lease.occupied_tokens
            if lease.first_byte_at is None:
                prefills[lease.replica.id] += 1
                pending[lease.replica.id] += lease.uncached_tokens
                pairs[lease.replica.id] += lease.prefill_pairs
        for fleet in self.fleets:
            fleet.look_at_others()
            fleet.check()
            for one in fleet.replicas:
                assert one.running + one.other_running == running[one.id]
                assert one.prefills == prefills[one.id]
                assert one.pending_prefill_tokens + one.other_prefill_tokens == pending[one.id]
                assert one.pending_prefill_pairs + one.other_prefill_pairs == pairs[one.id]
                assert one.occupied_tokens + one.other_occupied_tokens == occupied[one.id]


TestWorkersShareABoard = WorkersShareABoard.TestCase
TestWorkersShareABoard.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


def test_only_what_changed_is_told() -> None:
    memory = memoryview(bytearray(board_bytes(2, 3)))
    mine = LeaseBoard(memory, REPLICAS, workers=2, worker=0)
    other = LeaseBoard(memory, REPLICAS, workers=2, worker=1)
    little = InFlight(1, 1, 10, 50, 100)
    much = InFlight(3, 2, 30, 450, 300)
    mine.show("r0", little)
    assert list(mine.others()) == []
    other.show("r2", much)
    assert list(mine.others()) == [("r2", much)]
    assert list(mine.others()) == []
    assert list(other.others()) == [("r0", little)]
    mine.check()


def test_a_board_needs_its_memory() -> None:
    with pytest.raises(ValueError, match="reshape"):
        LeaseBoard(memoryview(bytearray(8)), REPLICAS, workers=2, worker=0)
