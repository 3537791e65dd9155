"""What policies see of caches that are known by events: trust that fades, ranks that are one."""

import pytest

from router.core.ranks import rank_cache_id
from tests.support.served import PROMPT, assign, clock, followed, served


async def test_trust_begins_with_the_events_and_fades_when_they_are_lost() -> None:
    model = served(events=True)
    replica = model.fleet["r0"]
    assert replica.trust == 0.0
    status = followed(model)
    assert (replica.trust, replica.capacity_tokens, replica.block_size) == (1.0, 1600, 16)
    now = clock()
    status.lost(now)
    model.events_changed("r0", status)
    first = replica.trust
    assert 0.0 < first < 1.0
    model.expire(now + 60.0)
    assert 0.0 < replica.trust < first / 2
    model.expire(now + 6000.0)
    assert replica.trust < 0.01


async def test_the_ranks_of_a_replica_are_one_to_policies() -> None:
    model = served(events=True, ranks=3, replicas=2, policy="prefix_aware")
    ranks = [rank_cache_id("r1", rank) for rank in range(3)]
    model.tree.store(ranks[0], (), [1], None, [PROMPT[:8]], 4)
    model.tree.store(ranks[2], (), [1, 2], None, [PROMPT[:8], PROMPT[8:16]], 4)
    replica = model.fleet["r1"]
    statuses = [followed(model, one) for one in ranks[:2]]
    assert (replica.trust, replica.capacity_tokens) == (0.0, None), "the third is not known yet"
    statuses.append(followed(model, ranks[2]))
    assert (replica.trust, replica.capacity_tokens, replica.held_tokens) == (1.0, 4800, 12)
    assignment = assign(model)
    assert (assignment.replica_id, assignment.matched_tokens) == ("r1", 8)
    now = clock()
    statuses[1].lost(now)
    model.events_changed(ranks[1], statuses[1])
    assert replica.trust == pytest.approx(statuses[1].trust(now), rel=0.01)
    assert replica.trust < 1.0


@pytest.mark.parametrize(("ranks", "probed"), [(1, True), (2, False)])
async def test_a_replica_with_one_cache_is_probed_for_its_events_delay(
    ranks: int, probed: bool
) -> None:
    model = served(events=True, ranks=ranks)
    routed = assign(model, b"all of this is new. " * 50).routed
    assert routed is not None
    assert (routed.probe_end > 0) is probed
