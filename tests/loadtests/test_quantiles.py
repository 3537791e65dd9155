"""One quantile for all reports: nearest rank."""

import pytest

from loadtests.quantiles import quantile


@pytest.mark.parametrize(
    ("values", "share", "found"),
    [
        pytest.param([3.0], 0.99, 3.0, id="one"),
        pytest.param([1.0, 2.0, 3.0, 4.0], 0.0, 1.0, id="the first"),
        pytest.param([1.0, 2.0, 3.0, 4.0], 0.25, 1.0, id="a quarter is not above it"),
        pytest.param([1.0, 2.0, 3.0, 4.0], 0.26, 2.0, id="a little more than a quarter"),
        pytest.param([1.0, 2.0, 3.0, 4.0], 0.5, 2.0, id="half of an even number"),
        pytest.param([1.0, 2.0, 3.0, 4.0], 0.99, 4.0, id="99 % of four"),
        pytest.param([1.0, 2.0, 3.0, 4.0], 1.0, 4.0, id="all of four"),
        pytest.param(list(range(1, 11)), 0.01, 1, id="1 % of ten"),
        pytest.param(list(range(1, 11)), 0.5, 5, id="half of ten"),
        pytest.param(list(range(1, 11)), 0.9, 9, id="nine of ten"),
        pytest.param(list(range(1, 11)), 0.99, 10, id="99 % of ten"),
        pytest.param(list(range(1, 101)), 0.99, 99, id="99 of 100"),
        pytest.param(list(range(1, 201)), 0.999, 200, id="the last"),
    ],
)
def test_a_quantile_is_the_least_value_that_so_many_do_not_exceed(
    values: list[float], share: float, found: float
) -> None:
    assert quantile(values, share) == found


def test_of_no_values_it_is_what_the_caller_says() -> None:
    assert quantile([], 0.5) == 0.0
    assert quantile([], 0.5, of_none=-1.0) == -1.0
