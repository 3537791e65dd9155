"""The cost model finds a replica's true rates from noisy samples, wherever it starts."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.cost import CostModel, StartingRates


def teach(
    cost: CostModel, replica: str, rate: float, overhead: float, rng: Random, count: int = 200
) -> None:
    for _ in range(count):
        tokens = round(10 ** rng.uniform(1, 4))
        seconds = (overhead + tokens / rate) * rng.uniform(0.8, 1.25)
        cost.observe_prefill(replica, tokens, seconds)
        cost.check()


@pytest.mark.parametrize("rate", [50.0, 1_000.0, 20_000.0, 400_000.0])
def test_the_prefill_rate_is_found_from_any_start(rate: float) -> None:
    cost = CostModel()
    teach(cost, "a", rate, 30.0 / rate, Random(1))
    assert cost.rates("a").prefill_tokens_per_s == pytest.approx(rate, rel=0.25)
    assert cost.rates("a").overhead_s == pytest.approx(30.0 / rate, rel=0.6)


def test_one_stall_hardly_changes_the_rate() -> None:
    cost = CostModel()
    teach(cost, "a", 5_000.0, 0.01, Random(1))
    before = cost.rates("a").prefill_tokens_per_s
    cost.observe_prefill("a", 5_000, 300.0)
    assert cost.rates("a").prefill_tokens_per_s == pytest.approx(before, rel=0.25)


def test_a_replica_that_got_slower_is_noticed() -> None:
    cost = CostModel()
    teach(cost, "a", 50_000.0, 0.01, Random(1))
    teach(cost, "a", 2_000.0, 0.01, Random(2), count=300)
    assert cost.rates("a").prefill_tokens_per_s == pytest.approx(2_000.0, rel=0.3)


def test_a_new_replica_is_taken_to_be_as_fast_as_the_median() -> None:
    cost = CostModel()
    for name, rate in (("a", 1_000.0), ("b", 8_000.0), ("c", 60_000.0)):
        teach(cost, name, rate, 0.0001, Random(1))
    assert cost.rates("new").prefill_tokens_per_s == pytest.approx(8_000.0, rel=0.25)


def test_all_replicas_are_equal_before_anything_was_measured() -> None:
    cost = CostModel(StartingRates(prefill_tokens_per_s=7_000.0))
    assert cost.rates("a") == cost.rates("b")
    assert cost.rates("a").prefill_tokens_per_s == pytest.approx(7_000.0)


def test_equal_replicas_stay_equal_through_noise() -> None:
    cost = CostModel()
    for name, seed in (("a", 1), ("b", 2)):
        teach(cost, name, 10_000.0, 0.02, Random(seed))
        rng = Random(seed)
        for _ in range(100):
            running = rng.randrange(1, 20)
            cost.observe_decode(name, running, (0.02 + 0.001 * running) * rng.uniform(0.8, 1.25))
    assert cost.rates("a") == cost.rates("b")


def test_replicas_of_another_speed_are_told_apart() -> None:
    cost = CostModel()
    teach(cost, "fast", 40_000.0, 0.005, Random(1))
    teach(cost, "slow", 4_000.0, 0.005, Random(2))
    assert cost.rates("fast").prefill_tokens_per_s > 5 * cost.rates("slow").prefill_tokens_per_s


def test_decode_steps_are_a_base_and_a_slope() -> None:
    cost, rng = CostModel(), Random(1)
    for _ in range(200):
        running = rng.randrange(1, 40)
        cost.observe_decode("a", running, (0.01 + 0.002 * running) * rng.uniform(0.9, 1.1))
    assert cost.rates("a").decode_base_s == pytest.approx(0.01, rel=0.5)
    assert cost.rates("a").decode_slope_s == pytest.approx(0.002, rel=0.15)


def test_bytes_per_token_and_output_length_follow_the_answers() -> None:
    cost = CostModel()
    assert cost.bytes_per_token == 4.0
    for _ in range(300):
        cost.observe_prompt(3_000, 1_000)
        cost.observe_output(40)
    assert cost.bytes_per_token == pytest.approx(3.0, rel=0.01)
    assert cost.expected_output_tokens(None) == pytest.approx(40.0, rel=0.05)
    assert cost.expected_output_tokens(7) == 7


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"), st.integers(0, 1_000_000), st.floats(-1.0, 1e5), st.booleans()
        ),
        max_size=60,
    )
)
def test_rates_stay_positive_numbers_whatever_is_measured(
    samples: list[tuple[str, int, float, bool]],
) -> None:
    cost = CostModel()
    for replica, amount, seconds, prefill in samples:
        if prefill:
            cost.observe_prefill(replica, amount, seconds)
        else:
            cost.observe_decode(replica, amount, seconds)
        cost.check()
