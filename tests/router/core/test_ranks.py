"""Every data-parallel rank has a cache with a name and a port of its own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.ranks import rank_cache_id, rank_endpoint, replica_of

ids = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=9)


@given(st.sets(ids), st.integers(1, 20))
def test_no_two_caches_share_a_name_and_each_leads_to_its_replica(
    replicas: set[str], ranks: int
) -> None:
    names = {rank_cache_id(one, rank): one for one in replicas for rank in range(ranks)}
    assert len(names) == len(replicas) * ranks
    assert all(replica_of(name) == one for name, one in names.items())
    assert all(rank_cache_id(one, 0) == one for one in replicas)


@pytest.mark.parametrize(
    ("endpoint", "rank", "expected"),
    [
        ("tcp://10.0.0.1:5557", 0, "tcp://10.0.0.1:5557"),
        ("tcp://10.0.0.1:5557", 3, "tcp://10.0.0.1:5560"),
        ("tcp://[::1]:5557", 1, "tcp://[::1]:5558"),
        ("ipc:///run/kv:1", 0, "ipc:///run/kv:1"),
    ],
)
def test_a_rank_publishes_at_the_port_plus_its_number(
    endpoint: str, rank: int, expected: str
) -> None:
    assert rank_endpoint(endpoint, rank) == expected
