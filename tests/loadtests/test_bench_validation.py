"""Real beside simulated: equal requests give equal virtual times, and a table shows errors."""

from loadtests.bench_validation import Row, lines_of, simulated
from loadtests.sim.workloads.registry import build
from loadtests.sim.workloads.workload import generate
from replica.core.timing import PRESETS


def test_the_table_shows_how_far_off_the_simulator_is() -> None:
    row = Row(
        requests_per_s=0.8,
        requests=120,
        first_p50_s=(0.4, 0.3),
        first_p90_s=(2.0, 2.2),
        first_mean_s=(1.0, 1.0),
        hit=(0.5, 0.6),
        late_s=0.01,
    )
    table = "\n".join(lines_of([row]))
    assert "-25%" in table
    assert "+10%" in table
    assert "+0%" in table
    assert "60.0%" in table


def test_a_slower_device_is_slower_in_virtual_time() -> None:
    values = {"document_tokens": "300", "answer_tokens": "5"}
    workload = build("documents", values)
    requests = list(generate(workload, seed=1, requests_per_s=1.0, count=20))
    timing = PRESETS["cpu-smollm2"].timing
    firsts = [
        [one.first_token_s or 0.0 for one in simulated(requests, one_timing, 0)]
        for one_timing in (timing, timing, timing.slowed(2.0))
    ]
    assert len(firsts[0]) == 20
    assert firsts[0] == firsts[1]
    assert sum(firsts[2]) > 1.9 * sum(firsts[0])
    assert min(firsts[0]) > 0.0
