"""Regressors across sizes as a scikit-learn estimator, for its cross-validation, pipelines and searches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from pytest_dooly.published.across import FEWEST_ROWS, AcrossSizes

__all__ = ["AcrossSizesRegressor"]

Array = npt.NDArray[np.float64]


class AcrossSizesRegressor(RegressorMixin, BaseEstimator):
    """Boosted trees over what a kernel does, with the error to be expected of each prediction.

    Columns are those of a `kernels.Description`, by name in a DataFrame, or by number.

    Attributes:
        space: columns in which a row is near another, logarithms of sizes and of request values; None for those whose
            name begins with `size `, and for all where there are none.
        sizes: those of them that tell one size from another, so that a fold can leave a size out as a whole; None for
            all, each row being a size of its own.
        roofline: column with log2 of the seconds that the device needs at best; None for `roofline` where there is one,
            and else for a constant.
        learner_: what was learned, as plain data; a latency DB keeps its `to_json()`.
    """

    def __init__(
        self,
        space: Sequence[str | int] | None = None,
        sizes: Sequence[str | int] | None = None,
        roofline: str | int | None = None,
    ) -> None:
        self.space = space
        self.sizes = sizes
        self.roofline = roofline

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803 - as scikit-learn names it
        """Learns from rows that were measured.

        Args:
            X: features, shape (rows, features).
            y: latencies, shape (rows,), in seconds, above zero.

        Raises:
            ValueError: a value is not finite, a latency not above zero, rows are too few, or a named column is none.
            MissingExtraError: lightgbm is not installed.
        """
        matrix, latencies_s = validate_data(
            self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=FEWEST_ROWS
        )
        if latencies_s.min() <= 0:
            raise ValueError(f"latencies are above zero, got {latencies_s.min():g}")
        names = list(getattr(self, "feature_names_in_", ()))
        told = [i for i, name in enumerate(names) if name.startswith("size ")] or list(range(matrix.shape[1]))
        space = told if self.space is None else [self._place(column) for column in self.space]
        sizes = space if self.sizes is None else [self._place(column) for column in self.sizes]
        if not sizes or not set(sizes) <= set(space):
            raise ValueError("sizes are columns of the space, at least one of them")
        roofline = "roofline" if self.roofline is None and "roofline" in names else self.roofline
        self.roofline_ = None if roofline is None else self._place(roofline)
        self.order_ = [*space, *(i for i in range(matrix.shape[1]) if i not in space)]
        _, groups = np.unique(matrix[:, sizes], axis=0, return_inverse=True)
        self.learner_ = AcrossSizes.fit(
            matrix[:, self.order_], self._roofline_s(matrix), latencies_s.astype(np.float64), groups, len(space)
        )
        return self

    def predict(self, X: Any, *, return_error: bool = False) -> Any:  # noqa: N803 - as scikit-learn names it
        """Latencies in seconds, shape (rows,), and with `return_error` their expected relative errors, too."""
        check_is_fitted(self)
        matrix = validate_data(self, X, dtype=np.float64, reset=False)
        latencies_s, errors = self.learner_.predict(matrix[:, self.order_], self._roofline_s(matrix))
        return (latencies_s, errors) if return_error else latencies_s

    def _roofline_s(self, matrix: Array) -> Array:
        return np.zeros(len(matrix)) if self.roofline_ is None else np.exp2(matrix[:, self.roofline_])

    def _place(self, column: str | int) -> int:
        """Number of a column."""
        names = list(getattr(self, "feature_names_in_", ()))
        place = names.index(column) if column in names else column
        if not isinstance(place, int) or not 0 <= place < self.n_features_in_:
            raise ValueError(f"there is no column {column!r} among {', '.join(names) or self.n_features_in_}")
        return place

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = True
        return tags
