"""Intervals around predictions: what they are put together from."""

from __future__ import annotations

import dataclasses
import math

import pytest

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.traffic import Traffic, TrafficRequest
from pytest_dooly.core.workload import Workload
from pytest_dooly.prediction.interval import (
    AT_ONCE,
    BURST,
    ESTIMATE,
    OPERATIONS,
    SYSTEM,
    Interval,
    is_mixture,
    log_width,
    operations_error,
)
from pytest_dooly.prediction.shares import Shares, bases_at, shares_at, shares_of
from pytest_dooly.prediction.step import predict_step
from tests.prediction.test_comparison import FOUNDED, MODEL, MODELS
from tests.samples import served, uses
from tests.traced import MIXTRAL_MOE

SURE = Shares({"published": 1.0, "estimate": 0.0}, 0.0)


def test_without_errors_of_operations_what_they_do_not_explain_is_left() -> None:
    found = Interval.around(1.0, "tpot", SURE, mixture=False)
    assert math.log(found.high_s) == pytest.approx(SYSTEM["tpot", False])
    assert found.low_s * found.high_s == pytest.approx(1.0)


def test_what_a_server_makes_of_very_many_at_once_decides_too() -> None:
    few, many = (Interval.around(1.0, "ttft", SURE, mixture=True, at_once=number) for number in (BURST - 1, BURST))
    assert math.log(few.high_s) == pytest.approx(SYSTEM["ttft", True])
    assert math.log(many.high_s) == pytest.approx(AT_ONCE["ttft"])
    assert many.high_s > few.high_s
    assert [Workload(8, 4, 100).num_at_once, Workload(8, 4, 100, 200).num_at_once] == [100, 0]
    together, apart = TrafficRequest(0.0, 8, 4), TrafficRequest(1.0, 8, 4)
    assert [Traffic(each).num_at_once for each in ((together, together), (together, apart))] == [2, 0]
    assert Traffic((together, together), 1).num_at_once == 0  # the second is sent as the first one ends


def test_a_mean_error_is_less_than_what_nine_of_ten_lie_within() -> None:
    # Of a normal error of standard deviation 1 the mean of absolute values is 0.798, and 90 % lie within 1.645.
    assert pytest.approx(1.645, rel=1e-3) == OPERATIONS * 0.798
    assert operations_error(Shares({"published": 1.0}, 0.05)) == pytest.approx(0.05 * OPERATIONS)


def test_an_estimate_may_be_off_by_a_factor_of_two() -> None:
    assert operations_error(Shares({"estimate": 1.0}, None)) == ESTIMATE == math.log(2)
    half = operations_error(Shares({"published": 0.5, "estimate": 0.5}, 0.1))
    assert half == pytest.approx(0.05 * OPERATIONS + 0.5 * ESTIMATE)


def test_the_less_is_known_the_wider() -> None:
    widths = [
        Interval.around(1.0, "ttft", shares, mixture=True).high_s
        for shares in (SURE, Shares({"across sizes": 1.0}, 0.05), Shares({"across sizes": 0.5, "estimate": 0.5}, 0.05))
    ]
    assert widths == sorted(set(widths))


def test_each_figure_is_as_sure_as_the_step_that_it_consists_of() -> None:
    steps = {"ttft": Batch.uniform(1, 64, 0), "tpot": Batch.uniform(4, 1, 64)}
    for batch in steps.values():
        shares = shares_of(predict_step(MODEL, MODELS, batch), bases_at(MODEL, FOUNDED, batch))
        assert shares_at(MODEL, FOUNDED, batch) == shares
        found = Interval.around(0.01, "tpot", shares, mixture=False)
        assert found.high_s == pytest.approx(0.01 * math.exp(log_width("tpot", shares, mixture=False)))
        assert found.low_s * found.high_s == pytest.approx(0.01**2)


def test_a_mixture_is_told_by_its_operations() -> None:
    assert is_mixture(served(uses(MIXTRAL_MOE)))
    assert not is_mixture(dataclasses.replace(MODEL))
