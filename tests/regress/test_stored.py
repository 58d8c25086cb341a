"""Anybody's estimator on what a latency DB holds: compared, refitted, and never kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sklearn.dummy import DummyRegressor

from pytest_dooly.errors import EstimatorError
from pytest_dooly.latency_db.db import LatencyDB
from pytest_dooly.regress.foreign import ForeignEstimator
from pytest_dooly.regress.stored import Comparison, compare_with, fit_regressors, refitted
from tests.samples import ENVIRONMENT, LINEAR, REQUESTS, SAMPLER, TOKENS, measured, served, uses


class NoRequests(DummyRegressor):
    """Always 1 ms, and of few points nothing."""

    def fit(self, table: Any, latencies_s: Any) -> Any:
        if len(latencies_s) < 5:
            raise ValueError("too few")
        return super().fit(table, latencies_s)

    def predict(self, table: Any) -> Any:
        return 0 * super().predict(table) + 1e-3


def test_an_estimator_is_compared_where_ours_are_and_refitted_to_what_is_measured(tmp_path: Path) -> None:
    model = served(uses(LINEAR), uses(SAMPLER))
    estimator = ForeignEstimator.of(NoRequests)
    with LatencyDB.open(tmp_path / "latency.db") as db:
        for point in TOKENS:
            db.record(LINEAR, ENVIRONMENT, point, measured(2e-3), spent_s=1.0)
        fitted, _ = fit_regressors([model], db, ENVIRONMENT)
        assert compare_with(estimator, fitted, db, ENVIRONMENT) == Comparison("NoRequests", {LINEAR.key: 0.5}, {})
        again = refitted(estimator, model, db, ENVIRONMENT)
        assert list(again) == [LINEAR.key]
        assert again[LINEAR.key].predict_s(TOKENS[:2]).tolist() == [1e-3, 1e-3]
        for point in REQUESTS[:2]:
            db.record(SAMPLER, ENVIRONMENT, point, measured(2e-3), spent_s=1.0)
        fitted, _ = fit_regressors([model], db, ENVIRONMENT)
        assert SAMPLER.key not in compare_with(estimator, fitted, db, ENVIRONMENT).errors  # of two none is held out
        db.record(SAMPLER, ENVIRONMENT, REQUESTS[2], measured(2e-3), spent_s=1.0)
        kept = db.load_regressors(ENVIRONMENT)
        found = compare_with(estimator, fitted, db, ENVIRONMENT)
        assert found.errors == {LINEAR.key: 0.5}
        assert found.refused == {SAMPLER.key: f"NoRequests cannot be fitted to {SAMPLER.label}: ValueError: too few"}
        with pytest.raises(EstimatorError, match="cannot be fitted to sampler"):
            refitted(estimator, model, db, ENVIRONMENT)
        assert db.load_regressors(ENVIRONMENT) == kept
