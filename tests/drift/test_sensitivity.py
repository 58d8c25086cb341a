"""Slopes: what earlier runs tell of an operation, and what they must not."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_dooly.drift.change import UNEQUAL, Change
from pytest_dooly.drift.sensitivity import Earlier, at_one_state, slopes


def earlier(seed: int, common: float, *, slope: float = 0.2, error: float = 0.008) -> Earlier:
    log = slope * common + np.random.default_rng(seed).normal(0, error)
    return Earlier(common, {"op": Change(float(log), error, 50.0)})


def test_of_no_run_a_slope_is_a_quarter_either_way() -> None:
    slope = slopes([], ["op"])["op"]
    assert (slope.value, slope.error) == (0.0, UNEQUAL)


def test_runs_of_a_machine_in_another_state_tell_the_slope() -> None:
    runs = [earlier(seed, common) for seed, common in enumerate((-0.1, -0.15, 0.02, -0.07, 0.12))]
    slope = slopes(runs, ["op"])["op"]
    assert slope.value == pytest.approx(0.2, abs=0.08)
    assert slope.error < 0.05
    known = at_one_state({"op": Change(0.02 - 0.05, 0.008, 50.0)}, -0.1, {"op": slope})["op"]
    assert known.log == pytest.approx(-0.01, abs=0.01)
    assert known.error < 0.01


def test_runs_of_a_machine_in_one_state_tell_nothing() -> None:
    slope = slopes([earlier(seed, 0.002) for seed in range(10)], ["op"])["op"]
    assert abs(slope.value) < 0.1
    assert slope.error > 0.8 * UNEQUAL


def test_a_slowdown_that_one_run_had_bends_no_slope() -> None:
    runs = [earlier(seed, 0.1 + 0.01 * seed) for seed in range(6)]
    slowed = Earlier(0.1, {"op": Change(0.2, 0.008, 50.0)})
    assert slopes([*runs, slowed], ["op"])["op"].value == pytest.approx(slopes(runs, ["op"])["op"].value, abs=0.04)


def test_an_operation_that_had_drifted_is_learnt_from_where_it_had_not() -> None:
    runs = [earlier(1, 0.1), Earlier(0.1, {})]
    assert slopes(runs, ["op"]) == slopes(runs[:1], ["op"])
