"""Least squares over ramps: the form that every regressor has."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["EVERY_POINT", "MODEL_ERROR", "Solver", "isotonic", "ramps_of"]


Array = npt.NDArray[np.float64]
_Parameters = tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...], float]
"""Knots and coefficients of each feature, and the intercept."""

MODEL_ERROR = 0.03
"""Relative error that a good model has at a point that was measured without noise: no point counts as better known."""

EVERY_POINT, _BETWEEN = 0, 3
"""Number of knots that stands for all points; how many knots a power law between two of them takes."""

_CAUCHY, _REWEIGHTINGS = 2.385, 8
"""Standard deviations from which on a residual counts ever less (95 % efficient on normal noise, Holland and Welsch
1977); how often weights are made from residuals."""


def isotonic(column: Array, latencies_s: Array, weights: Array) -> _Parameters:
    """Power laws from point to point, after latencies that fall as work grows are pooled (Ayer et al. 1955).

    The column is above zero. A power law is a straight line on log axes; between two points it is drawn by a few ramps,
    so that this is one more regressor of the same form. Constant before the first point; after the last, the last slope
    or the mean one.
    """
    from scipy.optimize import isotonic_regression

    order = np.argsort(column)
    sizes, logs, squares = column[order], np.log(latencies_s[order]), weights[order] ** 2
    if not np.diff(sizes).all():  # no power law leads from a point to another of equal work
        sizes, place = np.unique(sizes, return_inverse=True)
        total: Array = np.bincount(place, squares).astype(np.float64)
        logs, squares = np.bincount(place, squares * logs) / total, total
    logs = isotonic_regression(logs, weights=squares).x
    steps = np.arange((len(sizes) - 1) * _BETWEEN + 1) / _BETWEEN
    knots = np.exp(np.interp(steps, np.arange(len(sizes)), np.log(sizes)))
    heights = np.exp(np.interp(steps, np.arange(len(sizes)), logs))
    slopes = np.maximum(np.diff(heights), 0) / np.diff(knots)
    mean = (heights[-1] - heights[0]) / max(knots[-1] - knots[0], 1.0)
    beyond = max(float(mean), *map(float, slopes[-1:]), 0.0)
    places = (0.0, *map(float, knots))
    return (places,), ((0.0, *map(float, slopes), beyond),), float(heights[0])


@dataclass(frozen=True)
class Solver:
    """Non-negative least squares over the ramps of a matrix of features.

    Attributes:
        knots: of each feature, ascending.
        design: a column of ones and one for each ramp, shape (points, ramps + 1).
    """

    knots: tuple[Array, ...]
    design: Array

    @classmethod
    def of(cls, matrix: Array, num_knots: int, *, first_apart: bool = False) -> Solver:
        """Ramps with knots at zero and at quantiles of each feature's values.

        Args:
            matrix: features, shape (points, features).
            num_knots: of each feature.
            first_apart: whether the smallest value of the first feature has a ramp of its own to the next one.
        """
        knots = tuple(_knots(column, num_knots) for column in matrix.T)
        if first_apart:
            knots = (np.union1d(knots[0], np.unique(matrix[:, 0])[:2]), *knots[1:])
        return cls(knots, _design(matrix, knots))

    def design_of(self, matrix: Array) -> Array:
        """The ramps at other points."""
        return _design(matrix, self.knots)

    def solve(self, rows: Array) -> Array:
        """Coefficients of the least squared error of `rows[:, 0] * prediction` against `rows[:, 1]`."""
        from scipy.optimize import nnls  # half a second that a plan or a prediction does without

        # Columns of like size keep the solver's tolerance meaningful: pairs are millions, requests are one.
        weighted = self.design * rows[:, :1]
        scale = np.maximum(weighted.max(0), 1e-30)
        solution, _ = nnls(weighted / scale, rows[:, 1], maxiter=50 * weighted.shape[1])
        return solution / scale

    def weights(self, latencies_s: Array, known: Array) -> Array:
        """Rows for `solve` that make squared errors log-like and far ones linear, shape (points, 2).

        With both sides divided by the root of what is measured times what was predicted before, an error is
        (p - y) / sqrt(p y), nearly log(p / y): too high and too low weigh alike.
        """
        rows = np.column_stack([known / latencies_s, known])
        for _ in range(_REWEIGHTINGS):
            predicted = np.maximum(self.design @ self.solve(rows), 1e-3 * latencies_s)
            residuals = np.abs(np.log(predicted / latencies_s))
            scale = max(1.4826 * float(np.median(residuals)), MODEL_ERROR / 2)
            trust = 1 / np.sqrt(1 + (residuals / (_CAUCHY * scale)) ** 2)
            factor = known * trust / np.sqrt(predicted * latencies_s)
            rows = np.column_stack([factor, factor * latencies_s])
        return rows

    def fit(self, latencies_s: Array, known: Array) -> _Parameters:
        """Knots, coefficients and intercept of the robust fit."""
        solution = self.solve(self.weights(latencies_s, known))
        ends = np.cumsum([1, *(len(places) for places in self.knots)])
        coefficients = tuple(tuple(map(float, solution[at:end])) for at, end in itertools.pairwise(ends))
        return tuple(tuple(map(float, places)) for places in self.knots), coefficients, float(solution[0])


def _knots(column: Array, num_knots: int) -> Array:
    """Zero and quantiles of the distinct values: where a ramp begins."""
    if num_knots == 1:
        return np.zeros(1)
    ordered = np.sort(column)
    distinct = ordered[:-1][np.diff(ordered) > 0]  # the largest begins nothing
    distinct = distinct[distinct > 0]
    if num_knots <= len(distinct):
        places = np.arange(1, num_knots) / num_knots * (len(distinct) - 1)
        distinct = np.interp(places, np.arange(len(distinct)), distinct)
    return np.concatenate([[0.0], distinct])


def _design(matrix: Array, knots: Sequence[Array]) -> Array:
    """A column of ones, and of each feature one for each ramp: how far it has risen; shape (points, ramps + 1)."""
    ramps = [
        np.minimum(np.maximum(column[:, None] - places, 0), np.append(places[1:], math.inf) - places)
        for column, places in zip(matrix.T, knots, strict=True)
    ]
    return np.concatenate([np.ones((len(matrix), 1)), *ramps], axis=1)


def ramps_of(column: Array, knots: Sequence[float], coefficients: Sequence[float]) -> Array:
    """Sum of the ramps: a piecewise-linear function with slope coefficients[i] from knots[i] on."""
    if len(knots) == 1:
        return column * coefficients[0]  # the one knot is zero
    heights = np.concatenate([[0.0], np.cumsum(np.array(coefficients[:-1]) * np.diff(knots))])
    ramps: Array = np.interp(column, knots, heights) + coefficients[-1] * np.maximum(column - knots[-1], 0)
    return ramps
