"""Targets for the first token: how late it comes is learned, and short ones weigh more."""

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.targets import DEVIATION_MIN, WEIGHT_MAX, Targets


def taught(factors: list[float]) -> Targets:
    targets = Targets()
    for factor in factors:
        targets.first_token(0.5, 0.5 * factor)
    return targets


def test_before_anything_was_seen_the_chance_is_even_at_what_is_expected() -> None:
    targets = Targets()
    assert targets.chance_late(0.4, 0.4) == pytest.approx(0.5)
    assert targets.chance_late(0.1, 0.4) < 0.1 < 0.9 < targets.chance_late(1.6, 0.4)
    assert targets.weight(0.4) == 1.0


def test_the_chance_is_the_share_that_came_late() -> None:
    rng = Random(1)
    factors = [math.exp(rng.gauss(0.3, 0.4)) for _ in range(2_000)]
    targets = taught(factors)
    for target_s in (0.3, 0.5, 0.7, 1.0):
        late = sum(0.5 * factor > target_s for factor in factors) / len(factors)
        assert targets.chance_late(0.5, target_s) == pytest.approx(late, abs=0.1)


def test_what_always_comes_when_expected_is_almost_sure() -> None:
    targets = taught([1.0] * 500)
    assert targets.chance_late(0.5, 0.5 * math.exp(3 * DEVIATION_MIN)) < 0.01
    assert targets.chance_late(0.5, 0.5 * math.exp(-3 * DEVIATION_MIN)) > 0.99


def test_a_second_is_worth_more_to_who_has_the_shorter_target() -> None:
    targets = Targets()
    for _ in range(200):
        targets.came(0.5)
        targets.came(2.0)
    urgent, patient = targets.weight(0.5), targets.weight(2.0)
    assert urgent == pytest.approx(4 * patient)
    assert patient < 1.0 < urgent


def test_where_all_have_the_same_target_it_weighs_nothing() -> None:
    targets = Targets()
    targets.came(0.5)
    assert targets.weight(0.5) == pytest.approx(1.0)


@given(st.lists(st.tuples(st.floats(0.0, 1e9), st.floats(0.0, 1e9)), max_size=30), st.floats())
def test_weights_and_chances_are_bounded_whatever_comes(
    seen: list[tuple[float, float]], target_s: float
) -> None:
    targets = Targets()
    for expected_s, after_s in seen:
        targets.first_token(expected_s, after_s)
        targets.came(after_s)
        targets.check()
        for asked_s in (after_s, -1.0, target_s):
            if not math.isnan(asked_s):
                assert 1 / WEIGHT_MAX <= targets.weight(asked_s) <= WEIGHT_MAX
                assert 0.0 <= targets.chance_late(expected_s, asked_s) <= 1.0
