"""Jumps between neighbours: told where both were measured and noise does not explain them, else called a prediction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from pytest_dooly.checking.cliffs import cliffs, edge_points
from pytest_dooly.core.batch import Limits, SweepPoint
from pytest_dooly.core.measurement import Measurement
from pytest_dooly.regress.regressor import Regressor
from pytest_dooly.simulation.predicted_model import PredictedModel
from tests.samples import ATTENTION, LIMITS, LINEAR, SAMPLER, STEP, measured, model_and_regressors

SERVED, MODELS = model_and_regressors()
# Attended pairs and tokens alike: 1,023 tokens are served, so that no prompt takes a second step.
WHOLE = replace(SERVED, limits=replace(LIMITS, max_num_tokens=1023))


@dataclass(frozen=True)
class Tiles:
    """As the linear's regressor, but half as much again from 33 tokens on."""

    regressor: Regressor

    def predict_s(self, points: Any) -> Any:
        seconds = self.regressor.predict_s(points)
        return np.where(seconds < 325e-6, seconds, 1.5 * seconds)

    def out_of_range(self, points: Any) -> None:
        return None


def linear(below_s: float, above_s: float, *, noise: float = 0.0) -> dict[str, dict[SweepPoint, Measurement]]:
    """The linear at 32 and 33 tokens."""
    latencies_s = {32: below_s, 33: above_s}
    return {
        LINEAR.key: {
            SweepPoint(num_tokens=size): replace(measured(latency_s), iqr_s=0.0, noise=noise)
            for size, latency_s in latencies_s.items()
        }
    }


def test_edges_are_those_of_tiles_and_only_of_matrix_products() -> None:
    assert [str(point) for point in edge_points(LINEAR, Limits(64, 8, 64))] == ["T16", "T17", "T32", "T33"]
    assert not edge_points(ATTENTION, LIMITS)
    assert not edge_points(SAMPLER, LIMITS)
    assert not edge_points(STEP, LIMITS)


def test_what_is_measured_at_both_neighbours_is_a_cliff() -> None:
    (cliff,) = cliffs(PredictedModel(WHOLE, MODELS), linear(320e-6, 460e-6))
    # Three linears, each 130 µs beyond the 330 µs of its share, of a step of 960 + 104 µs.
    assert (cliff.of, cliff.size, cliff.measured) == ("tokens", 33, (LINEAR.label,))
    assert cliff.jump == pytest.approx(390 / 1064, rel=1e-3)
    assert str(cliff) == f"avoid 33 tokens: +37% of a step of 1.06 ms; measured: {LINEAR.label}"


@pytest.mark.parametrize(
    "outcomes",
    [
        linear(320e-6, 330e-6),  # its share
        linear(320e-6, 335e-6),  # little of a step
        linear(320e-6, 460e-6, noise=0.2),
        linear(320e-6, 300e-6),
        {},
    ],
)
def test_shares_little_ones_and_noise_are_none(outcomes: dict[str, dict[SweepPoint, Measurement]]) -> None:
    assert cliffs(PredictedModel(WHOLE, MODELS), outcomes) == []


def test_a_prediction_alone_is_called_so_and_measurements_decide() -> None:
    model = PredictedModel(WHOLE, {**MODELS, LINEAR.key: Tiles(MODELS[LINEAR.key])})
    (cliff,) = cliffs(model, {})
    assert (cliff.of, cliff.size, cliff.measured) == ("tokens", 33, ())
    assert str(cliff).endswith("; in prediction alone, not measured at both sizes")
    assert cliffs(model, linear(320e-6, 330e-6)) == []


def test_a_prompt_of_one_token_more_than_a_step_takes_one_more() -> None:
    small = replace(SERVED, limits=Limits(max_num_tokens=16, max_num_seqs=8, max_model_len=64))
    (cliff,) = cliffs(PredictedModel(small, MODELS), {})
    assert (cliff.of, cliff.size) == ("prompt tokens", 17)
    assert "one step more" in str(cliff)
