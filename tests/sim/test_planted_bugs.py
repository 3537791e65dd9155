"""Bugs that are put in on purpose are found, by the check that is there for them."""

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace
from random import Random
from typing import Any
from unittest import mock

import pytest

from protocol.kv_events import SnapshotReader
from replica.core.block_pool import BlockPool
from router.control.subscription import KvSubscription
from router.core import resume, states
from router.core.admission import Admission
from router.core.event_sequence import EventSequence, Verdict
from router.core.fleet import Fleet, Lease
from router.core.kv_index import KvIndex
from router.core.predictions import Predictions
from router.core.retry_budget import RetryBudget
from router.core.said import Said
from router.core.states import State, StateEvent
from router.dataplane.exchange import Exchange
from router.dataplane.reply import Reply
from router.dataplane.route import Outcome as AttemptOutcome
from router.routed_request import RoutedRequest
from router.served_model import ReplicaAssignment
from tests.sim import trouble
from tests.sim.scenario import Scenario, draw_scenario
from tests.sim.world import World

_SEEDS = 200


def scenario_of(seed: int, **rates: float) -> Scenario:
    """The world of a seed, but for some of its faults."""
    scenario = draw_scenario(Random(seed))
    return replace(scenario, faults=replace(scenario.faults, **rates))


def patch(owner: Any, name: str, new: Any) -> Any:
    return mock.patch.object(owner, name, new)


def lease_kept_when_the_client_leaves() -> Any:
    def ends(self: ReplicaAssignment, outcome: str, *rest: Any) -> None:
        with ExitStack() as stack:
            if outcome == AttemptOutcome.CLIENT_GONE:
                stack.enter_context(patch(Lease, "release", lambda self, now: True))
            assigned_release(self, outcome, *rest)

    assigned_release = ReplicaAssignment.release
    return patch(ReplicaAssignment, "release", ends)


def gap_ignored() -> Any:
    judge = EventSequence.judge

    def judges(self: EventSequence, seq: int, *, same_life: bool = False) -> Verdict:
        verdict = judge(self, seq, same_life=same_life)
        if verdict is Verdict.GAP:
            self.next_seq = seq + 1
            return Verdict.NEXT
        return verdict

    return patch(EventSequence, "judge", judges)


def batch_applied_again() -> Any:
    judge = EventSequence.judge

    def judges(self: EventSequence, seq: int, *, same_life: bool = False) -> Verdict:
        verdict = judge(self, seq, same_life=same_life)
        return Verdict.NEXT if verdict is Verdict.OLD else verdict

    return patch(EventSequence, "judge", judges)


def removals_ignored() -> Any:
    return patch(KvIndex, "_remove", lambda self, replica, events: None)


def batches_between_snapshot_and_stream_skipped() -> Any:
    take = KvSubscription._take_snapshot

    async def takes(self: KvSubscription, reader: SnapshotReader) -> EventSequence:
        await take(self, reader)
        return EventSequence(None)

    return patch(KvSubscription, "_take_snapshot", takes)


def unbounded_queue() -> Any:
    return patch(Admission, "_make_place", lambda self, ticket, now: [])


def retry_after_the_first_byte() -> Any:
    def goes_on(self: Exchange, broken: Any) -> None:
        if not self._route.may_retry(self._loop.time()):
            raise broken.error
        self._reply = Reply(self._client, self.request, self._route.log)

    return patch(Exchange, "_go_on_after", goes_on)


def given_up_by_how_things_were_before() -> Any:
    drop = Exchange._drop

    def drops(self: Exchange, attempt: Any, failure: Any) -> None:
        may_retry = self._route.may_retry(self._loop.time())
        with patch(RoutedRequest, "may_retry", lambda self, now: may_retry):
            drop(self, attempt, failure)

    return patch(Exchange, "_drop", drops)


def retries_without_a_budget() -> Any:
    return patch(RetryBudget, "affords_retry", lambda self, now: True)


def resumed_with_a_token_too_few() -> Any:
    by_tokens = resume.body_by_tokens

    def body(fields: Any, said: Said) -> bytes:
        assert said.token_ids is not None
        del said.token_ids[-1:]
        return by_tokens(fields, said)

    return mock.patch("router.routed_request.body_by_tokens", body)


def blanks_said_again_counted_twice() -> Any:
    return patch(Said, "kept_events", lambda self, *, chat: self.text_events)


def client_gone_unnoticed() -> Any:
    return patch(Exchange, "client_gone", lambda self: None)


def block_released_twice() -> Any:
    release = BlockPool.release

    def releases(self: BlockPool, blocks: Sequence[int]) -> None:
        release(self, blocks)
        if len(blocks) > 3 and self.references(blocks[0]):
            release(self, blocks[:1])

    return patch(BlockPool, "release", releases)


def held_block_evictable() -> Any:
    acquire = BlockPool.acquire

    def acquires(self: BlockPool, blocks: Any, *rest: Any, **named: Any) -> None:
        acquire(self, blocks, *rest, **named)
        for block in list(blocks)[:1]:
            if self.references(block) == 1:
                self._eviction.add(block)

    return patch(BlockPool, "acquire", acquires)


def drained_replica_chosen() -> Any:
    kept = {key: one for key, one in states.TRANSITIONS.items() if key[1] is not StateEvent.DRAIN}
    return mock.patch.dict(states.TRANSITIONS, kept, clear=True)


def ejected_replica_chosen() -> Any:
    def sort(self: Fleet) -> None:
        routable = (State.READY, State.EJECTED)
        self.ready = [one for one in self._replicas.values() if one.state in routable]
        self.suspect = [one for one in self._replicas.values() if one.state is State.SUSPECT]

    return patch(Fleet, "_sort", sort)


def predictions_kept_for_ever() -> Any:
    return patch(Predictions, "expire_some", lambda self, now, most: None)


def dead_workers_leases_kept() -> Any:
    return patch(trouble, "clear_row", lambda memory, replicas, worker: None)


# Faults without which a bug does not show; more frequent than most worlds have them.
_NEEDS = {
    retry_after_the_first_byte: {"crash": 0.5},
    given_up_by_how_things_were_before: {"crash": 0.6, "stall": 0.5, "replica_error": 0.1},
    retries_without_a_budget: {"crash": 0.5},
    resumed_with_a_token_too_few: {"crash": 0.5},
    blanks_said_again_counted_twice: {"crash": 0.5},
    client_gone_unnoticed: {"leave": 0.5, "worker_death": 0.0},
    dead_workers_leases_kept: {"worker_death": 0.5},
}
PLANTED: list[tuple[Callable[[], Any], Collection[str]]] = [
    (lease_kept_when_the_client_leaves, {"leases", "checks.py:_worker"}),
    (gap_ignored, {"claims"}),
    (batch_applied_again, {"claims"}),
    (removals_ignored, {"claims"}),
    (batches_between_snapshot_and_stream_skipped, {"claims"}),
    (unbounded_queue, {"admission.py:check"}),
    (retry_after_the_first_byte, {"retries", "answers", "client"}),
    (given_up_by_how_things_were_before, {"retries"}),
    (retries_without_a_budget, {"retry_budget.py:retry"}),
    (resumed_with_a_token_too_few, {"answers"}),
    (blanks_said_again_counted_twice, {"answers"}),
    (client_gone_unnoticed, {"checks.py:_worker"}),
    (
        block_released_twice,
        {"block_pool.py:release", "block_pool.py:check", "table_checks.py:check_tables"},
    ),
    (held_block_evictable, {"block_pool.py:check", "reuse_aware.py:add"}),
    (drained_replica_chosen, {"choices"}),
    (ejected_replica_chosen, {"choices", "fleet.py:check"}),
    (predictions_kept_for_ever, {"claims"}),
    (dead_workers_leases_kept, {"leases"}),
]


@pytest.mark.parametrize(("plant", "found_by"), PLANTED, ids=[one.__name__ for one, _ in PLANTED])
def test_a_planted_bug_is_found(plant: Callable[[], Any], found_by: Collection[str]) -> None:
    with plant():
        for seed in range(_SEEDS):
            failure = World(seed, scenario_of(seed, **_NEEDS.get(plant, {}))).run().failure
            if failure is not None:
                assert failure.check in found_by, failure
                return
    raise AssertionError(f"not found in {_SEEDS} worlds")
