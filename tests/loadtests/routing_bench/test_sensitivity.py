"""Constants of our policy: found, changed for a while, and put back."""

import importlib

import pytest

from loadtests.routing_bench.sensitivity import MODULES, changed, changes, constants, scaled
from loadtests.sim.ours import Ours


def test_constants_are_found_in_the_policy_and_in_its_modules() -> None:
    found = constants()
    assert any("." not in name for name in found)
    for module in MODULES:
        assert any(name.startswith(module + ".") for name in found)
    assert len(changes()) > len(found)


@pytest.mark.parametrize(
    ("value", "half", "twice"),
    [(2.0, 1.0, 4.0), (0.4, 0.2, 0.8), (0.98, 0.96, 0.99), (64, 32, 128), (1, 1, 2), (0.0, 0, 0)],
)
def test_shares_stay_shares_and_whole_numbers_whole(
    value: float, half: float, twice: float
) -> None:
    assert scaled(value, 0.5) == pytest.approx(half)
    assert scaled(value, 2.0) == pytest.approx(twice)
    assert type(scaled(value, 2.0)) is type(value)


def test_each_change_holds_for_a_while_and_then_all_is_as_before() -> None:
    before = constants()
    for change in changes():
        name = change.split(" × ")[0]
        module, _, constant = name.rpartition(".")
        with changed(Ours, change) as make:
            if module:
                now = getattr(importlib.import_module(module), constant)
                assert now != before[name]
            else:
                assert make is not Ours
    assert constants() == before


def test_a_constant_that_is_not_there_is_told() -> None:
    with pytest.raises(ValueError, match="no constant 'luck'"), changed(Ours, "luck × 2"):
        pass
    with changed(Ours, "") as make:
        assert make is Ours
