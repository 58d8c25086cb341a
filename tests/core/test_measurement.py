import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.core.measurement import Measurement, interval_of_median, relative_spread

samples = st.lists(st.floats(1e-7, 10.0), min_size=3, max_size=50)


def test_statistics_of_known_samples() -> None:
    assert Measurement.of([5.0, 1.0, 2.0, 4.0, 13.0]) == Measurement(
        rounds=5, min_s=1.0, median_s=4.0, mean_s=5.0, iqr_s=3.0
    )


@given(samples)
def test_no_sample_is_dropped(samples_s: list[float]) -> None:
    measurement = Measurement.of(samples_s)
    assert measurement.rounds == len(samples_s)
    assert measurement.min_s == min(samples_s)
    assert measurement.mean_s * measurement.rounds == pytest.approx(sum(samples_s))


@given(samples.flatmap(lambda samples_s: st.tuples(st.just(samples_s), st.permutations(samples_s))))
def test_the_order_of_the_rounds_does_not_matter(pair: tuple[list[float], list[float]]) -> None:
    samples_s, shuffled = pair
    assert Measurement.of(shuffled) == Measurement.of(samples_s)


@given(samples)
def test_statistics_are_ordered(samples_s: list[float]) -> None:
    measurement = Measurement.of(samples_s)
    assert measurement.min_s <= measurement.median_s <= max(samples_s)
    assert 0 <= measurement.iqr_s <= max(samples_s) - min(samples_s)


@pytest.mark.parametrize("samples_s", [[], [1.0], [1.0, 2.0]])
def test_two_rounds_have_no_median_worth_the_name(samples_s: list[float]) -> None:
    with pytest.raises(ValueError, match=f"at least 3 rounds, got {len(samples_s)}"):
        Measurement.of(samples_s)


def test_the_interval_of_a_median_holds_it_as_often_as_it_says() -> None:
    draw = random.Random(0)
    held = 0
    for _ in range(400):
        interval = interval_of_median([draw.expovariate(1.0) for _ in range(25)])
        assert interval is not None
        held += interval[0] <= math.log(2) <= interval[1]
    assert 0.93 <= held / 400 <= 1.0


@pytest.mark.parametrize(("count", "known"), [(5, False), (6, True)])
def test_too_few_rounds_have_no_interval(count: int, known: bool) -> None:
    assert (interval_of_median([float(i) for i in range(count)]) is not None) == known


def test_an_outlier_hardly_spreads() -> None:
    calm = [1.0, 1.01, 0.99, 1.02, 0.98]
    assert relative_spread([*calm, 50.0]) < 0.05
    assert relative_spread([2 * value for value in calm]) == pytest.approx(relative_spread(calm))
    assert relative_spread([1.0]) == 0.0
