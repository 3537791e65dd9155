"""The cost model finds a replica's true rates from noisy samples, wherever it starts."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.attention import attention_pairs
from router.core.cost import CostModel, StartingRates


def teach(
    cost: CostModel,
    replica: str,
    rate: float,
    overhead: float,
    rng: Random,
    count: int = 200,
    context_weight: float = 0.0,
) -> None:
    """First tokens of prompts that found the replica idle."""
    for _ in range(count):
        tokens, context = (round(10 ** rng.uniform(1, 4)) for _ in range(2))
        pairs = attention_pairs(context, tokens)
        seconds = (overhead + (tokens + context_weight * pairs) / rate) * rng.uniform(0.8, 1.25)
        cost.observe_computed(replica, tokens, pairs, seconds)
        cost.observe_first_token(replica, tokens, pairs, seconds)
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
    cost.observe_computed("a", 5_000, 0, 300.0)
    cost.observe_first_token("a", 5_000, 0, 300.0)
    assert cost.rates("a").prefill_tokens_per_s == pytest.approx(before, rel=0.25)


def test_a_replica_that_got_slower_is_noticed() -> None:
    cost = CostModel()
    teach(cost, "a", 50_000.0, 0.01, Random(1))
    teach(cost, "a", 2_000.0, 0.01, Random(2), count=400)
    assert cost.rates("a").prefill_tokens_per_s == pytest.approx(2_000.0, rel=0.3)


def test_a_new_replica_is_taken_to_be_as_fast_as_most() -> None:
    cost = CostModel()
    for name, rate in (("a", 8_000.0), ("b", 8_000.0), ("c", 1_000.0)):
        teach(cost, name, rate, 0.0001, Random(1))
    assert cost.rates("new").prefill_tokens_per_s == pytest.approx(8_000.0, rel=0.25)
    assert cost.rates("c").prefill_tokens_per_s == pytest.approx(1_000.0, rel=0.25)


@pytest.mark.parametrize("context_weight", [0.0, 4e-5, 1e-3])
def test_the_weight_of_context_is_found(context_weight: float) -> None:
    cost = CostModel()
    for name, seed in (("a", 1), ("b", 2)):
        teach(cost, name, 8_000.0, 0.01, Random(seed), context_weight=context_weight)
    rates = cost.rates("a")
    found = rates.prefill_s_per_pair / rates.prefill_s_per_token
    assert found == pytest.approx(context_weight, rel=0.3, abs=1e-5)
    assert rates.prefill_tokens_per_s == pytest.approx(8_000.0, rel=0.25)


def test_context_weighs_nothing_where_it_cannot_be_told_from_length() -> None:
    cost = CostModel()
    for tokens in [100, 10_000] * 20:
        pairs = attention_pairs(0, tokens)
        cost.observe_first_token("a", tokens, pairs, 0.01 + tokens / 8_000 + pairs * 1e-9)
    assert cost.rates("a").prefill_s_per_pair == 0.0


def test_a_busy_replica_shows_its_pace_though_nobody_finds_it_idle() -> None:
    """Prompts are served in any order; three of four replicas take a second for 1,000 tokens."""
    cost, rng = CostModel(), Random(1)
    for name in "abcd":
        teach(cost, name, 1_000.0, 0.001, rng, count=20)
    for _ in range(60):
        for name in "abcd":
            tokens = rng.randrange(10, 4_000)
            slowness = 3.0 if name == "d" else 1.0
            cost.observe_computed(name, tokens, 0, slowness * tokens / 1_000)
    assert cost.rates("a") == cost.rates("b") == cost.rates("c")
    assert cost.rates("d").prefill_tokens_per_s == pytest.approx(333.0, rel=0.25)


@pytest.mark.parametrize(("slowness", "believed"), [(3.0, 3.0), (0.25, 0.25), (2.0, 1.0)])
def test_the_first_sample_of_a_replica_tells_only_what_is_clear(
    slowness: float, believed: float
) -> None:
    cost, rng = CostModel(), Random(1)
    for name in "abc":
        teach(cost, name, 1_000.0, 0.001, rng, count=20)
        for _ in range(20):
            cost.observe_computed(name, 2_000, 0, 2.0)
    cost.rates("new")
    cost.observe_computed("new", 2_000, 0, 2.0 * slowness)
    for _ in range(4):  # as many as it takes to be published
        cost.observe_computed("a", 2_000, 0, 2.0)
    usual, found = cost.rates("a").prefill_tokens_per_s, cost.rates("new").prefill_tokens_per_s
    assert usual / found == pytest.approx(believed, rel=0.1)


def test_who_seemed_slow_and_got_nothing_since_is_tried_again() -> None:
    cost, rng = CostModel(), Random(1)
    for name in "abcd":
        teach(cost, name, 1_000.0, 0.001, rng, count=20)
    cost.observe_computed("d", 2_000, 0, 100.0)  # it stalled
    slower = []
    for _ in range(400):
        for name in "abc":
            cost.observe_computed(name, 2_000, 0, 2.0)
        rates = cost.rates("a"), cost.rates("d")
        slower.append(rates[1].prefill_s_per_token / rates[0].prefill_s_per_token)
    assert slower[0] > 3.0
    assert slower[-1] == 1.0
    # What it shows then counts more than what is forgotten.
    for _ in range(10):
        cost.observe_computed("d", 2_000, 0, 6.0)
    assert cost.rates("d").prefill_tokens_per_s == pytest.approx(333.0, rel=0.25)


def test_what_was_cached_after_all_makes_nobody_fast() -> None:
    """Half of what "a" was thought to compute it had; its answers' usage says so later."""
    cost, rng = CostModel(), Random(1)
    for name in "abc":
        teach(cost, name, 1_000.0, 0.001, rng, count=20)
    for _ in range(100):
        cost.observe_computed("a", 2_000, 0, 1.0)
        cost.correct_computed("a", -1_000, 0)
        for name in "bc":
            cost.observe_computed(name, 1_000, 0, 1.0)
    assert cost.rates("a") == cost.rates("b") == cost.rates("c")
    cost.correct_computed("nobody", 1, 1)
    cost.check()


def test_first_tokens_out_of_one_step_share_it() -> None:
    """One answers eight short prompts a step, the others one long one."""
    cost, rng = CostModel(), Random(1)
    for name in "abc":
        teach(cost, name, 10_000.0, 0.02, rng, count=20)
    for _ in range(60):
        for number in range(8):
            cost.observe_computed("a", 50, 0, 0.06 if number == 0 else 0.0)
        for name in "bc":
            cost.observe_computed(name, 2_000, 0, 0.22)
    assert cost.rates("a") == cost.rates("b") == cost.rates("c")


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
            cost.observe_computed(replica, amount, amount * amount, seconds)
            cost.observe_first_token(replica, amount, amount * amount, seconds)
        else:
            cost.observe_decode(replica, amount, seconds)
        cost.check()
