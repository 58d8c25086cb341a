"""More work that is predicted to be faster is found; what is within the error is none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from pytest_dooly.checking.monotone import MORE, faster_with_more
from pytest_dooly.regress.regressor import Regressor
from pytest_dooly.simulation.predicted_model import PredictedModel
from tests.samples import LINEAR, model_and_regressors

SERVED, MODELS = model_and_regressors()


@dataclass(frozen=True)
class Dips:
    """As the linear's regressor, but fast from 100 tokens on, as trees may be."""

    regressor: Regressor

    def predict_s(self, points: Any) -> Any:
        seconds = self.regressor.predict_s(points)
        return np.where(seconds < 999e-6, seconds, 0.2 * seconds)

    def out_of_range(self, points: Any) -> None:
        return None


@pytest.mark.parametrize("what", MORE)
def test_ramps_are_never_faster_with_more(what: str) -> None:
    assert faster_with_more(PredictedModel(SERVED, MODELS), what, examples=20) is None


def test_a_dip_is_found() -> None:
    model = PredictedModel(SERVED, {**MODELS, LINEAR.key: Dips(MODELS[LINEAR.key])})
    faster = faster_with_more(model, "tokens")
    assert faster is not None
    assert faster.batch.num_tokens < 100 <= faster.larger.num_tokens
    assert f"--batch {faster.larger} is predicted to take" in str(faster)


def test_what_is_within_the_stated_error_is_not_faster() -> None:
    unsure = {key: replace(regressor, error=0.9) for key, regressor in MODELS.items() if key != LINEAR.key}
    model = PredictedModel(SERVED, {**unsure, LINEAR.key: Dips(MODELS[LINEAR.key])})
    assert faster_with_more(model, "tokens", examples=50) is None
