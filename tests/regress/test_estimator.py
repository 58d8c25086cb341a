"""Our regressors within scikit-learn: its own checks, and the same results as a profiling run's."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from pytest_dooly.core.measurement import Measurement
from pytest_dooly.core.signature import Signature
from pytest_dooly.regress.estimator import RampRegressor
from pytest_dooly.regress.fit import fit, weights_of, work_frame
from pytest_dooly.sweep.grid import refinements, sweep
from tests.samples import ADMISSION, ATTENTION, LIMITS, LINEAR, MIXTURE, SAMPLER, STEP, windowed


@parametrize_with_checks([RampRegressor()])  # type: ignore[untyped-decorator]
def test_scikit_learn_s_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def noisy(signature: Signature, count: int) -> dict[Any, Measurement]:
    """Measurements that rise with their work, some of which are known badly."""
    draw = random.Random(3)
    points = [*sweep(signature, LIMITS), *refinements(signature, LIMITS)][:count]
    work = work_frame(signature, points).to_numpy().sum(axis=1)
    return {
        point: Measurement(9, mean, mean, mean, mean * draw.choice([0.01, 0.4]))
        for point, each in zip(points, work, strict=True)
        for mean in [(20e-6 + 1e-7 * float(each)) * draw.gauss(1, 0.05)]
    }


@pytest.mark.parametrize("count", [2, 9, 60])
@pytest.mark.parametrize("signature", [LINEAR, SAMPLER, ATTENTION, MIXTURE, STEP, ADMISSION, windowed(64)])
def test_it_finds_what_a_profiling_run_finds(signature: Signature, count: int) -> None:
    outcomes = noisy(signature, count)
    table, means_s = work_frame(signature, list(outcomes)), [each.mean_s for each in outcomes.values()]
    regressor = fit(signature, outcomes)
    estimator = RampRegressor().fit(table, means_s, sample_weight=weights_of(outcomes) ** 2)
    assert estimator.method_ == regressor.method
    assert estimator.error_ == pytest.approx(regressor.error)
    assert estimator.errors_ == pytest.approx(dict(regressor.candidates))
    predicted_s = regressor.predict_s(list(outcomes))
    assert estimator.predict(table) == pytest.approx(predicted_s)
    stored = RampRegressor.of(regressor)
    assert stored.predict(table[list(regressor.features)]) == pytest.approx(predicted_s)
    assert (stored.method_, stored.error_) == (regressor.method, regressor.error)
    assert clone(stored).get_params() == stored.get_params()


def kernel(rows: int = 40) -> tuple[pd.DataFrame, Any]:
    """Columns that are no operation's: the first costs 2 µs a unit, the second nothing."""
    draw = np.random.default_rng(1)
    table = pd.DataFrame({"work": draw.uniform(1, 100, rows), "luck": draw.uniform(1, 100, rows)})
    return table, 30e-6 + 2e-6 * table["work"]


def test_parameters_can_be_read_set_and_cloned() -> None:
    candidates = {"work alone": ("work",)}
    estimator = RampRegressor(candidates)
    assert estimator.get_params() == {"candidates": candidates}
    again = clone(estimator.fit(*kernel()))
    assert again.get_params() == estimator.get_params()
    assert not hasattr(again, "knots_")
    assert again.set_params(candidates=None) is again
    assert again.fit(*kernel()).method_ == "columns, affine"
    assert estimator.method_ == "work alone, affine"


def test_cross_validation_pipelines_and_searches_are_scikit_learn_s() -> None:
    table, latencies_s = kernel()
    folds = KFold(5, shuffle=True, random_state=0)
    scoring = "neg_mean_absolute_percentage_error"
    piped = Pipeline([("as it is", "passthrough"), ("ramps", RampRegressor())])
    for estimator in (RampRegressor(), piped):
        scores = cross_val_score(estimator, table, latencies_s, cv=folds, scoring=scoring)
        assert len(scores) == 5
        assert (scores > -0.01).all()
    choices = {"candidates": [{"luck": ["luck"]}, {"work": ["work"]}]}
    search = GridSearchCV(RampRegressor(), choices, cv=folds, scoring=scoring).fit(table, latencies_s)
    assert search.best_params_["candidates"] == {"work": ["work"]}


def test_points_of_equal_work_and_of_none_are_fitted() -> None:
    sizes = np.repeat([1.0, 2.0, 8.0, 64.0, 500.0], 4)
    latencies_s = 1e-5 * (1 + np.log(sizes)) * np.tile([0.99, 1.0, 1.0, 1.01], 5)
    for shift in (0, -1):  # down to a size of zero
        estimator = RampRegressor().fit(sizes[:, None] + shift, latencies_s)
        assert estimator.predict(sizes[:, None] + shift) == pytest.approx(latencies_s, rel=0.1)
        assert ("columns, isotonic" in estimator.errors_) == (shift == 0)


@pytest.mark.parametrize(
    ("candidates", "change", "message"),
    [
        (None, {"work": -1.0}, "Negative values in data passed to RampRegressor: features count work, got -1"),
        ({"all": ["work", "wealth"]}, {}, "candidates name no features or unknown ones: wealth"),
        ({"all": []}, {}, "candidates name no features or unknown ones: none"),
    ],
)
def test_what_cannot_be_fitted_says_so(candidates: Any, change: dict[str, float], message: str) -> None:
    table, latencies_s = kernel()
    with pytest.raises(ValueError, match=message):
        RampRegressor(candidates).fit(table.assign(**change), latencies_s)


def test_latencies_are_above_zero() -> None:
    table, latencies_s = kernel()
    with pytest.raises(ValueError, match="latencies are above zero, got 0"):
        RampRegressor().fit(table, latencies_s - latencies_s.min())
