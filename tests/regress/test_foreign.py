"""Anybody's estimators: named, fitted, held to the same folds; what is wrong with one is one message."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import LinearRegression

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.signature import Signature
from pytest_dooly.core.work import Work
from pytest_dooly.errors import ConfigurationError, EstimatorError
from pytest_dooly.regress.estimator import RampRegressor
from pytest_dooly.regress.fit import fit, held_out_errors, work_frame
from pytest_dooly.regress.foreign import ForeignEstimator
from pytest_dooly.sweep.grid import sweep
from tests.regress.test_fit import attention, roofline
from tests.samples import ATTENTION, LIMITS, LINEAR, MIXTURE, TOKENS, measured

LINEARLY = {point: measured(5e-6 + 1e-6 * (point.num_tokens or 0)) for point in TOKENS}


class Tenfold:
    """Ten times the mean of what it was fitted to; remembers how it was called."""

    calls: list[tuple[list[str], int]]

    def fit(self, table: Any, latencies_s: Any) -> None:
        self.calls.append((list(table), len(latencies_s)))
        self.mean_s = float(np.mean(latencies_s))

    def predict(self, table: Any) -> Any:
        return np.full((len(table), 1), 10 * self.mean_s)


class Predicts(LinearRegression):
    """Whatever it is made with, whatever it is asked."""

    def __init__(self, value: float = 0.0, surplus: int = 0) -> None:
        super().__init__()
        self.value = value
        self.surplus = surplus

    def predict(self, X: Any) -> Any:  # noqa: N803 - as scikit-learn names it
        return np.full(len(X) + self.surplus, self.value)


class Refuses(LinearRegression):
    def fit(self, *_: Any) -> Any:
        raise ArithmeticError("no such luck\nand so on")


class RefusesToPredict(LinearRegression):
    def predict(self, *_: Any) -> Any:
        raise MemoryError


def logarithmic() -> TransformedTargetRegressor:
    return TransformedTargetRegressor(LinearRegression(), func=np.log, inverse_func=np.exp)


FITTED = LinearRegression()


@pytest.mark.parametrize("name", ["LinearRegression", "FITTED", "logarithmic", "RampRegressor"])
def test_a_class_an_estimator_and_a_function_that_makes_one_can_be_named(name: str) -> None:
    estimator = ForeignEstimator.named(f"{__name__}:{name}")
    regressor = estimator.fit(LINEAR, LINEARLY)
    assert regressor.predict_s(TOKENS).shape == (len(TOKENS),)
    if name != "logarithmic":
        assert regressor.predict_s([SweepPoint(num_tokens=77)])[0] == pytest.approx(82e-6)
    assert not hasattr(FITTED, "coef_")
    assert estimator.make() is not estimator.make()


def test_it_sees_work_features_and_latencies_in_seconds_and_is_held_to_our_folds() -> None:
    Tenfold.calls = []
    outcomes = {point: measured(roofline(point)) for point in TOKENS}
    error = ForeignEstimator.of(Tenfold).held_out_error(LINEAR, outcomes)
    assert Tenfold.calls == [(["size", "tiles"], len(TOKENS) - 1)] * (len(TOKENS) - 2)  # one by one, never an extreme
    means_s = {point: outcome.mean_s for point, outcome in outcomes.items()}
    off = [
        abs(10 * (sum(means_s.values()) - means_s[point]) / (len(TOKENS) - 1) / means_s[point] - 1)
        for point in held_out_errors(LINEAR, outcomes)
    ]
    assert error == pytest.approx(np.mean(off))
    assert ForeignEstimator.of(Tenfold).held_out_error(LINEAR, dict(list(outcomes.items())[:2])) is None


def test_points_that_are_known_badly_count_less() -> None:
    outcomes = dict(LINEARLY)
    odd = TOKENS[4]
    errors = []
    for iqr_share in (0.0, 3.0):
        mean_s = LINEARLY[odd].mean_s * 3
        outcomes[odd] = type(outcomes[odd])(3, mean_s, mean_s, mean_s, mean_s * iqr_share)
        errors.append(ForeignEstimator.of(RampRegressor).held_out_error(LINEAR, outcomes) or 0.0)
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize(("signature", "truth"), [(LINEAR, roofline), (ATTENTION, attention)])
def test_ours_as_anybody_s_predicts_as_ours(signature: Signature, truth: Any) -> None:
    points = list(sweep(signature, LIMITS))
    outcomes = {point: measured(truth(point)) for point in points}
    other, ours = ForeignEstimator.of(RampRegressor).fit(signature, outcomes), fit(signature, outcomes)
    assert other.predict_s(points) == pytest.approx(ours.predict_s(points), rel=1e-3)
    assert other.predict_s(Work.of(points)) == pytest.approx(other.predict_s(points))
    assert other.predict_s([]).shape == (0,)
    assert other.out_of_range(points[0]) is None
    assert other.out_of_range(Work.of(points)) is None


def test_out_of_range_is_told_of_every_feature_that_it_sees() -> None:
    line = ForeignEstimator.of(LinearRegression).fit(LINEAR, LINEARLY).out_of_range(SweepPoint(num_tokens=4096))
    assert line == "size 4,096 is outside of the measured 1 to 512"


def test_points_with_and_without_a_routing_are_fitted_by_what_they_share() -> None:
    routed = next(iter(sweep(MIXTURE, LIMITS)))
    regressor = ForeignEstimator.of(LinearRegression).fit(MIXTURE, {**LINEARLY, routed: measured(1e-5)})
    assert regressor.features == ("size", "tiles") == tuple(work_frame(MIXTURE, TOKENS))
    assert regressor.predict_s([routed]).shape == (1,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("forest", "'forest' names no estimator: write package.module:Class, as in sklearn.ensemble:RandomForest"),
        (":forest", "':forest' names no estimator"),
        ("nowhere.at.all:Forest", "cannot import nowhere.at.all .*: ModuleNotFoundError: No module named 'nowhere'"),
        ("broken:Forest", "cannot import broken for the regressor broken:Forest: ZeroDivisionError: division by zero"),
        (".relative:Forest", "cannot import .relative"),
        ("sklearn.ensemble:Forest", "module sklearn.ensemble has no Forest: write package.module:Class"),
        ("json:loads", r"json:loads cannot be made without arguments \(TypeError: loads\(\) missing"),
        ("json:JSONDecoder", "json:JSONDecoder is no estimator, which has fit and predict"),
        ("sklearn.preprocessing:StandardScaler", "is no estimator, which has fit and predict"),
        ("math:pi", r"math:pi cannot be made without arguments \(TypeError: 'float' object is not callable"),
    ],
)
def test_what_is_no_estimator_says_so(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(ConfigurationError, match=message):
        ForeignEstimator.named(name)


def test_modules_of_the_current_directory_are_found_after_installed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_estimators.py").write_text("from sklearn.linear_model import LinearRegression as Mine")
    (tmp_path / "json.py").write_text("1 / 0")
    before = list(sys.path)
    assert ForeignEstimator.named("my_estimators:Mine").name == "my_estimators:Mine"
    assert sys.path == before
    with pytest.raises(ConfigurationError, match="is no estimator"):
        ForeignEstimator.named("json:JSONDecoder")


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (Refuses(), "Refuses cannot be fitted to linear-64x128-bf16: ArithmeticError: no such luck$"),
        (RefusesToPredict(), "RefusesToPredict cannot predict linear-64x128-bf16: MemoryError$"),
        (
            Predicts(-1e-6),
            r"Predicts predicts -1e-06 s for linear-64x128-bf16 where size is \d+, tiles is \d+: name an",
        ),
        (Predicts(np.nan), "Predicts predicts nan s for linear"),
        (Predicts(np.inf), "Predicts predicts inf s for linear"),
        (Predicts(1.0, surplus=1), r"Predicts predicts 2 latencies of linear-64x128-bf16 for 1 points"),
    ],
)
def test_what_predicts_no_latency_says_so(estimator: Any, message: str) -> None:
    foreign = ForeignEstimator.of(estimator)
    with pytest.raises(EstimatorError, match=message):
        foreign.held_out_error(LINEAR, LINEARLY)
    with pytest.raises(EstimatorError, match=message):
        foreign.fit(LINEAR, LINEARLY).predict_s(TOKENS[3:4])
