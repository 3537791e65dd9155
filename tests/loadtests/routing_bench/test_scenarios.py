"""What is measured on: slices of a trace at any rate, fleets with a fault, sizes of caches."""

import json
from array import array
from pathlib import Path
from random import Random

import pytest

from loadtests.routing_bench.cache_sizes import SIZES, cache_blocks, reuse_distances
from loadtests.routing_bench.scenarios import FAULTS, scenarios, traces_folder
from loadtests.sim.request import SimRequest


def trace(folder: Path, lines: int) -> None:
    text = [
        {"timestamp": 500 * n, "input_length": 600, "output_length": 5, "hash_ids": [n, n + 1]}
        for n in range(lines)
    ]
    (folder / "some.jsonl").write_text("".join(json.dumps(one) + "\n" for one in text))


def test_seeds_of_a_trace_are_slices_of_it_at_the_rate_that_is_asked(tmp_path: Path) -> None:
    trace(tmp_path, 100)
    known = scenarios(traces_folder(tmp_path))
    firsts = []
    for seed in range(6):
        requests = list(known["trace-some"].requests(requests_per_s=4.0, seed=seed, count=20))
        assert [one.number for one in requests] == list(range(20))
        assert requests[0].arrival_s == 0.0
        assert requests[-1].arrival_s == pytest.approx(20 / 4.0)
        firsts.append(requests[0].prompt[0] // 512)
    assert firsts == [0, 20, 40, 60, 80, 0]
    assert len(list(known["trace-some"].requests(requests_per_s=4.0, seed=3, count=500))) == 100


def test_traces_are_looked_for_where_they_are_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARMROUTE_TRACES", str(tmp_path))
    assert traces_folder(None) == tmp_path
    with pytest.raises(ValueError, match="no such folder"):
        traces_folder(tmp_path / "nowhere")
    assert scenarios(None).keys() >= {"chat", "trap-siblings", *FAULTS}


@pytest.mark.parametrize("name", [one for one in FAULTS if one.startswith("one-")])
def test_one_replica_has_the_fault_and_the_others_are_well(name: str) -> None:
    fleet = scenarios(None)[name].specs(replicas=8, blocks=100, duration_s=60.0)
    first, *others = fleet
    assert len(fleet) == 8
    assert len(set(others)) == 1
    assert first != others[0]
    assert others[0] == scenarios(None)["agents"].specs(replicas=1, blocks=100, duration_s=9)[0]


def test_half_of_a_mixed_fleet_is_slower_and_smaller() -> None:
    fleet = scenarios(None)["half-slow"].specs(replicas=5, blocks=100, duration_s=60.0)
    assert [one.slowness for one in fleet] == [1.0, 1.0, 1.0, 2.0, 2.0]
    assert [one.cache_blocks for one in fleet] == [100, 100, 100, 50, 50]


def request(number: int, *ids: int, output_tokens: int = 10) -> SimRequest:
    prompt = array("I", [token for one in ids for token in range(one * 128, one * 128 + 128)])
    return SimRequest(
        number=number, arrival_s=float(number), prompt=prompt, output_tokens=output_tokens
    )


def test_reuse_distances_are_those_of_a_list_of_what_was_used_last() -> None:
    random = Random(3)
    requests = [
        request(n, *(random.choice((1, 2)), random.choice((3, 4, 5)))[: random.randrange(1, 3)])
        for n in range(60)
    ]
    stack: list[bytes] = []
    expected = []
    for one in requests:
        for end in range(128, len(one.prompt) + 1, 128):
            name = one.prompt[:end].tobytes()
            if name in stack:
                expected.append((len(stack) - stack.index(name)) * 128)
                stack.remove(name)
            stack.append(name)
    assert reuse_distances(requests) == sorted(expected)


def test_sizes_grow_and_hold_the_largest_request() -> None:
    requests = [request(n, 1, 2 + n % 7) for n in range(50)]
    sizes = cache_blocks(requests, requests_per_s=1.0, replicas=2, block_size=16)
    tight, medium, ample = (sizes[name] for name in SIZES)
    assert tight * 16 >= 2 * (256 + 10)
    assert medium >= 1.4 * tight
    assert ample >= 1.4 * medium
    busy = cache_blocks(requests, requests_per_s=1000.0, replicas=2, block_size=16)
    assert busy["tight"] * 16 * 2 >= 1000 * 10 * 0.03 * 266
