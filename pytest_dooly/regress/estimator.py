"""Our regressors as a scikit-learn estimator, for its cross-validation, pipelines and searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from pytest_dooly.regress.ramps import ramps_of
from pytest_dooly.regress.regressor import Regressor
from pytest_dooly.regress.selection import Learning, candidates_of, fit_best, sets_with

__all__ = ["RampRegressor"]

Array = npt.NDArray[np.float64]


class RampRegressor(RegressorMixin, BaseEstimator):
    """Latencies that rise with work, by ramps; what a profiling run fits, over any features that are not negative.

    The columns of a DataFrame are features by name. Where they are those of an operation's (`work_frame` gives them),
    the same candidates are compared as by a profiling run, with the same result; other columns are tried all at once.

    Attributes:
        candidates: features that are tried together, by name, the simplest first; None for those of the columns.
            Columns without names are called x0, x1, ….
        method_: name of the candidate that won.
        features_: that it looks at.
        knots_: of each feature, where its ramps begin.
        coefficients_: seconds per unit of each feature's ramps.
        intercept_: seconds without work.
        error_: held-out relative error of the winner, 0.05 for 5 %, and so a little flattering where candidates are
            many; None below three points.
        errors_: held-out error of each candidate, by name.
    """

    def __init__(self, candidates: Mapping[str, Sequence[str]] | None = None) -> None:
        self.candidates = candidates

    @classmethod
    def of(cls, regressor: Regressor) -> Self:
        """The estimator that predicts what a stored regressor does, from a DataFrame of its features."""
        estimator = cls({regressor.method.rpartition(", ")[0]: regressor.features})
        estimator._found(**{name: getattr(regressor, name) for name in _FOUND}, candidates=regressor.candidates)
        estimator.n_features_in_ = len(regressor.features)
        estimator.feature_names_in_ = np.array(regressor.features, dtype=object)
        return estimator

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803 - as scikit-learn names it
        """Chooses a candidate and fits it.

        Args:
            X: features, shape (points, features), not negative.
            y: latencies, shape (points,), in seconds, above zero.
            sample_weight: of each point's squared relative error, shape (points,); points of weight zero are left out.

        Raises:
            ValueError: a value is not finite, a feature negative, a latency not above zero, or a candidate names a
                feature that is no column.
        """
        matrix, latencies_s = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        weights = _check_sample_weight(sample_weight, matrix, dtype=np.float64, ensure_non_negative=True)
        counted = weights > 0
        matrix, latencies_s, weights = matrix[counted], latencies_s[counted].astype(np.float64), weights[counted]
        _check_positive(matrix)
        if latencies_s.min() <= 0:
            raise ValueError(f"latencies are above zero, got {latencies_s.min():g}")
        names = self._names()
        sets = {name: tuple(each) for name, each in (self.candidates or sets_with(names)).items()}
        unknown = sorted({name for each in sets.values() for name in each} - set(names))
        if unknown or not sets or not all(sets.values()):
            raise ValueError(f"candidates name no features or unknown ones: {', '.join(unknown) or 'none'}")
        one_size = {name for each in sets.values() for name in each} <= {"size", "tiles"} or len(names) == 1
        data = Learning(dict(zip(names, matrix.T, strict=True)), latencies_s, np.sqrt(weights))
        # Logarithms know no zero.
        candidates = [
            each
            for each in candidates_of(sets, len(matrix), one_size=one_size)
            if not each.isotonic or data.matrix(each).min() > 0
        ]
        self._found(**vars(fit_best(data, candidates)))
        return self

    def predict(self, X: Any) -> Array:  # noqa: N803 - as scikit-learn names it
        """Latencies in seconds, shape (points,), of features as `fit` was given them."""
        check_is_fitted(self)
        matrix = validate_data(self, X, dtype=np.float64, reset=False)
        _check_positive(matrix)
        columns = dict(zip(self._names(), matrix.T, strict=True))
        total = np.full(len(matrix), self.intercept_)
        for name, knots, coefficients in zip(self.features_, self.knots_, self.coefficients_, strict=True):
            total += ramps_of(columns[name], knots, coefficients)
        return total

    def _found(self, *, candidates: Sequence[tuple[str, float]], **found: Any) -> None:
        for name in _FOUND:
            setattr(self, f"{name}_", found[name])
        self.errors_ = dict(candidates)

    def _names(self) -> list[str]:
        names = getattr(self, "feature_names_in_", None)
        return [f"x{i}" for i in range(self.n_features_in_)] if names is None else list(names)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        tags.target_tags.positive_only = True
        return tags


_FOUND = ("method", "features", "knots", "coefficients", "intercept", "ranges", "error")


def _check_positive(matrix: Array) -> None:
    if matrix.min() < 0:
        raise ValueError(f"Negative values in data passed to RampRegressor: features count work, got {matrix.min():g}")
