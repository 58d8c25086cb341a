"""Slopes: what earlier runs tell of an operation, and what they must not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from pytest_dooly.drift.change import UNEQUAL, Change
from pytest_dooly.drift.sensitivity import Earlier, as_unsteady, at_one_state, slopes


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
    runs = [earlier(1, 0.1), replace(earlier(2, 0.1), drifted=frozenset({"op"}))]
    assert slopes(runs, ["op"]) == slopes(runs[:1], ["op"])


def unsteady(logs: Mapping[str, float], runs: Sequence[Mapping[str, float]]) -> dict[str, Change]:
    def changes(of: Mapping[str, float]) -> dict[str, Change]:
        return {name: Change(log, 0.01, 50.0) for name, log in of.items()}

    return as_unsteady(changes(logs), [Earlier(0.0, changes(run)) for run in runs], slopes([], logs))


CALM = {"one": 0.01, "two": -0.01, "three": 0.0, "four": 0.005, "five": -0.005}


def test_a_run_whose_operations_are_alike_is_as_sure_as_it_was_whatever_one_of_them_does() -> None:
    assert unsteady({**CALM, "one": 0.5}, [])["one"].error == 0.01


def test_a_run_whose_operations_are_apart_is_less_sure_of_each() -> None:
    found = unsteady({name: 10 * log for name, log in CALM.items()}, [])
    assert {round(each.error, 3) for each in found.values()} == {0.074}


def test_an_operation_that_comes_and_goes_is_less_sure_than_one_that_stays() -> None:
    runs = [{**CALM, "one": log} for log in (0.2, -0.1, 0.15, -0.2, 0.1)]
    found = unsteady(CALM, runs)
    assert found["one"].error > 0.1
    assert found["two"].error < 0.02


def test_a_run_with_a_drift_teaches_no_unsteadiness() -> None:
    runs = [CALM, CALM, {**CALM, "one": 0.3}, CALM, CALM]
    assert unsteady(CALM, runs)["one"].error == 0.01
