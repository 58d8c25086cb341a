"""Regressors across sizes within scikit-learn: its own checks, and what `AcrossSizes` learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import estimator_checks_generator

from pytest_dooly.published.across import AcrossSizes
from pytest_dooly.published.across_estimator import AcrossSizesRegressor
from tests.published.test_across import Array, rows

NAMES = ["size width", "size tokens", "tiles", "rest"]


def checks() -> list[Any]:
    """Scikit-learn's own, on fewer trees than ours."""
    every = estimator_checks_generator(AcrossSizesRegressor())
    return [pytest.param(each, check, id=check.func.__name__) for each, check in every]


@pytest.fixture
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_LATENCY", "_ERROR"):
        monkeypatch.setattr(
            f"pytest_dooly.published.across.{name}",
            {"num_leaves": 7, "min_data_in_leaf": 3, "learning_rate": 0.3, "trees": 15},
        )


@pytest.mark.parametrize(("estimator", "check"), checks())
def test_scikit_learn_s_own_checks(few_trees: None, estimator: Any, check: Any) -> None:
    check(estimator)


def described(widths: Any) -> tuple[pd.DataFrame, Array]:
    """A table as of a `kernels.Description`, and its latencies."""
    matrix, roofline_s, latencies_s, _ = rows(widths)
    return pd.DataFrame(matrix, columns=NAMES).assign(roofline=np.log2(roofline_s)), latencies_s


def test_it_learns_what_is_learned_for_a_latency_db(few_trees: None) -> None:
    widths = np.geomspace(1024.0, 32_768.0, 12)
    table, latencies_s = described(widths)
    matrix, roofline_s, _, groups = rows(widths)
    with_roofline = np.column_stack([matrix, np.log2(roofline_s)])
    learner = AcrossSizes.fit(with_roofline, roofline_s, latencies_s, groups, 2)
    expected_s, expected_errors = learner.predict(with_roofline, roofline_s)
    shuffled = table[["rest", "roofline", "size width", "tiles", "size tokens"]]
    for estimator, told in (
        (AcrossSizesRegressor(sizes=["size width"]), table),
        (AcrossSizesRegressor(space=[0, 1], sizes=[0], roofline=4), table.to_numpy()),
    ):
        predicted_s, errors = estimator.fit(told, latencies_s).predict(told, return_error=True)
        assert predicted_s == pytest.approx(expected_s)
        assert errors == pytest.approx(expected_errors)
        assert estimator.predict(told) == pytest.approx(expected_s)
        assert AcrossSizes.from_json(estimator.learner_.to_json()) == estimator.learner_
        assert estimator.learner_.unseen_sizes == pytest.approx(learner.unseen_sizes)
    other = AcrossSizesRegressor(sizes=["size width"]).fit(shuffled, latencies_s)
    assert np.median(np.abs(other.predict(shuffled) / latencies_s - 1)) < 0.1


def test_without_a_roofline_the_floor_alone_is_known(few_trees: None) -> None:
    table, latencies_s = described([1024.0, 2048.0])
    estimator = AcrossSizesRegressor().fit(table.drop(columns="roofline"), latencies_s)
    assert estimator.roofline_ is None
    assert np.median(np.abs(estimator.predict(table.drop(columns="roofline")) / latencies_s - 1)) < 0.3


def test_it_is_cloned_piped_and_cross_validated_over_sizes(few_trees: None) -> None:
    estimator = AcrossSizesRegressor(sizes=["size width"])
    assert clone(estimator).get_params() == {"space": None, "sizes": ["size width"], "roofline": None}
    assert clone(estimator).set_params(sizes=None).sizes is None
    table, latencies_s = described(np.geomspace(1024.0, 32_768.0, 12))
    for each in (estimator, make_pipeline("passthrough", estimator)):
        scores = cross_val_score(
            each,
            table,
            latencies_s,
            groups=table["size width"],
            cv=GroupKFold(3),
            scoring="neg_mean_absolute_percentage_error",
        )
        assert len(scores) == 3
        assert (scores > -0.5).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": ["tiles"]}, "sizes are columns of the space"),
        ({"sizes": []}, "sizes are columns of the space"),
        ({"space": ["depth"]}, "there is no column 'depth' among size width, size tokens"),
        ({"roofline": 9}, "there is no column 9 among"),
    ],
)
def test_columns_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AcrossSizesRegressor(**options).fit(*described([1024.0]))


def test_latencies_are_above_zero() -> None:
    table, latencies_s = described([1024.0])
    with pytest.raises(ValueError, match="latencies are above zero, got 0"):
        AcrossSizesRegressor().fit(table, 0 * latencies_s)
