"""The search for a rate, on engines whose goodput is known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.scheduling.clock import Simulated
from pytest_dooly.searching.goodput import Curve
from pytest_dooly.searching.objective import Objective
from tests.searching.samples import simulated

EVEN = (1.0,)
OBJECTIVE = Objective.parse("tpot_mean:40ms")


class Engine:
    """TPOT is 10 ms / (1 - rate / capacity): 40 ms at three quarters of its capacity."""

    def __init__(self, capacity: float) -> None:
        self.capacity, self.rates = capacity, list[float]()

    def __call__(self, rate: float) -> Simulated:
        self.rates.append(rate)
        tpot_s = 0.01 / max(1 - rate / self.capacity, 1e-3)
        return simulated([0.1] * 10, [tpot_s] * 10, gap_s=1 / rate)


@given(st.floats(0.05, 500), st.floats(0.02, 20), st.floats(0.01, 0.1))
def test_the_highest_rate_is_found_wherever_it_begins(capacity: float, start: float, tolerance: float) -> None:
    engine = Engine(capacity)
    found = Curve(engine, OBJECTIVE).highest(start * capacity, EVEN, tolerance)
    assert found.met is not None
    assert found.missed is not None
    assert found.met.rate <= 0.75 * capacity < found.missed.rate * (1 + 1e-9)
    assert found.missed.rate <= (1 + tolerance) * found.met.rate
    assert len(engine.rates) == len(set(engine.rates)) < 30


def test_a_curve_that_is_flat_and_then_steep_takes_few_simulations() -> None:
    """A straight line through its ends is far off."""
    rates: list[float] = []

    def simulate(rate: float) -> Simulated:
        rates.append(rate)
        return simulated([0.1] * 10, [0.0399 + 1e-6 * rate + (0.0 if rate < 0.9 else 0.2 * rate)] * 10, gap_s=1 / rate)

    found = Curve(simulate, OBJECTIVE).highest(8.0, EVEN, 0.03)
    assert found.met is not None
    assert found.met.rate == pytest.approx(0.9, rel=0.03)
    assert len(rates) < 16


def test_other_bounds_go_on_from_what_is_known() -> None:
    engine = Engine(100.0)
    curve = Curve(engine, OBJECTIVE)
    curve.highest(50.0, EVEN, 0.03)
    before = curve.simulations
    half = curve.highest(50.0, (0.5,), 0.03)  # 20 ms: half of the capacity
    assert half.met is not None
    assert half.met.rate == pytest.approx(50, rel=0.04)
    assert curve.simulations == len(engine.rates) < before + 6
    assert curve.highest(50.0, EVEN, 0.03) == curve.highest(50.0, EVEN, 0.03)
    assert curve.simulations == len(engine.rates)


def test_an_objective_that_nothing_meets() -> None:
    found = Curve(Engine(10.0), Objective.parse("tpot:5ms")).highest(5.0, EVEN, 0.03)
    assert found.met is None
    assert found.missed is not None
    assert found.missed.worst(EVEN) == pytest.approx(2, rel=0.3)


def test_a_queue_that_grows_misses_every_objective() -> None:
    def queueing(rate: float) -> Simulated:
        growth_s = 0.0 if rate < 20 else 0.05
        return simulated([0.01 + growth_s * place for place in range(40)], [0.001] * 40, gap_s=1 / rate)

    found = Curve(queueing, Objective.parse("tpot:1s")).highest(8.0, EVEN, 0.03)
    assert found.missed is not None
    assert found.missed.queue_grows
    assert found.met is not None
    assert found.met.rate == pytest.approx(20, rel=0.04)


def test_where_everything_is_met_no_rate_is_too_high() -> None:
    found = Curve(Engine(1e12), OBJECTIVE).highest(1.0, EVEN, 0.03)
    assert found.missed is None
    assert found.met is not None
    assert found.met.rate > 100
