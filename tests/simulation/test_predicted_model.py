"""Predictions of one model, as its fixture gives them: the same as everywhere else, errors and warnings included."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.traffic import Traffic, TrafficRequest
from pytest_dooly.core.workload import Workload
from pytest_dooly.errors import ConfigurationError, MissingMeasurements, OutOfRangeWarning
from pytest_dooly.prediction.step_times import StepTimes
from pytest_dooly.prediction.workload import predict_workload
from pytest_dooly.scheduling.clock import Server
from pytest_dooly.simulation.predicted_model import PredictedModel
from tests.samples import LINEAR, SAMPLER, model_and_regressors

SERVED, MODELS = model_and_regressors()


def test_steps_workloads_and_traffic_are_those_of_the_predictor() -> None:
    model, workload = PredictedModel(SERVED, MODELS), Workload(100, 8, 2)
    assert model.step_s("16") == model.step_s(Batch.parse("16")) == model.step("16+0").latency_s
    assert model.step_s("16") == pytest.approx(16 * 30e-6 + 2e-6 + 2e-6 + 100e-6)
    expected = predict_workload(StepTimes(SERVED, MODELS), workload)
    assert (model.ttft_s(workload), model.tpot_s(workload)) == (expected.ttft_s, expected.tpot_s)
    assert model.requests(workload).ttft_s.mean() == pytest.approx(expected.ttft_s)
    simulation = model.simulate(Traffic((TrafficRequest(0.0, 100, 1),)), server=Server(async_scheduling=False))
    assert simulation.simulated.ttft_s[0] == pytest.approx(model.step_s("100"))
    assert (model.name, model.limits, repr(model)) == ("small", SERVED.limits, "<small, predicted>")


def test_the_stated_error_is_weighted_with_latency() -> None:
    models = {key: replace(regressor, error=None) for key, regressor in MODELS.items()}
    model = PredictedModel(SERVED, models)
    assert model.stated_error(model.step("16")) == 0
    models |= {LINEAR.key: replace(MODELS[LINEAR.key], error=0.1), SAMPLER.key: replace(MODELS[SAMPLER.key], error=0.5)}
    model = PredictedModel(SERVED, models)
    assert model.stated_error(model.step("16")) == pytest.approx((480 * 0.1 + 2 * 0.5) / 482)


def test_what_is_out_of_range_is_told_once_an_operation() -> None:
    model = PredictedModel(SERVED, MODELS)
    with pytest.warns(OutOfRangeWarning, match="attention.* is outside of the measured"):
        model.step_s("8x1+900")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.step_s("8x1+901")


def test_what_cannot_be_predicted_is_said() -> None:
    with pytest.raises(MissingMeasurements, match="small has no regressor for linear-64x128"):
        PredictedModel(SERVED, {key: each for key, each in MODELS.items() if key != LINEAR.key})
    with pytest.raises(ConfigurationError, match="cannot read 'eight'"):
        PredictedModel(SERVED, MODELS).step_s("eight")
    with pytest.raises(ConfigurationError, match="exceed max_model_len"):
        PredictedModel(SERVED, MODELS).ttft_s(Workload(1024, 1, 1))
