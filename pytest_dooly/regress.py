"""Measurements -> Regressor: non-negative combinations of ramps over what the kernel does.

Every candidate is `intercept + sum_j c_j * ramp_j(work)` with non-negative coefficients, where a ramp rises from one
knot of a work feature to the next and then stays. Work features grow with every request, query, context and expert, so
no regressor can predict a negative latency or one that falls as work grows. The parameters are a few lists of numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pytest_dooly.batch import SweepPoint
from pytest_dooly.errors import MissingMeasurements
from pytest_dooly.measurement import Measurement
from pytest_dooly.operation import OperationKind
from pytest_dooly.signature import Signature
from pytest_dooly.work import Features, Work, features_of

__all__ = ["LatencyModel", "Regressor", "fit", "held_out_errors"]

Array = npt.NDArray[np.float64]
_Parameters = tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...], float]
"""Knots and coefficients of each feature, and the intercept."""

_FOLDS = 5
_MIN_POINTS = 3
"""Fewer leave none to hold out: the two that are always in the fit are the extremes."""

_MODEL_ERROR = 0.03
"""Relative error that a good model has at a point that was measured without noise: no point counts as better known."""

_INDEPENDENT_ROUNDS = 10
"""Rounds follow each other within a second and share the machine's mood, so that more of them say little more."""

_POINTS_PER_NUMBER = 4
"""Measurements for each number that ramps over several features are fitted with."""

_EVERY_POINT, _BETWEEN = 0, 3
"""Number of knots that stands for all points; how many knots a power law between two of them takes."""

_CAUCHY, _REWEIGHTINGS = 2.385, 8
"""Standard deviations from which on a residual counts ever less (95 % efficient on normal noise, Holland and Welsch
1977); how often weights are made from residuals."""


class LatencyModel(Protocol):
    """What predicts the latency of one operation on one device."""

    def predict_s(self, points: Sequence[SweepPoint] | Work) -> Array:
        """Latencies in seconds, shape (points,)."""

    def out_of_range(self, points: SweepPoint | Work) -> str | None:
        """One line on what lies furthest outside of the known latencies, or None."""


@dataclass(frozen=True)
class Regressor:
    """A fitted latency model of one operation in one environment.

    Attributes:
        method: name of the candidate that won.
        features: work features it looks at.
        knots: of each feature, where its ramps begin, ascending.
        coefficients: seconds per unit of each feature's ramps, all non-negative.
        intercept: seconds without work, non-negative.
        window: attention window in tokens; None where all is attended.
        ranges: smallest and largest measured value of each feature.
        error: held-out relative error of the winner, 0.05 for 5 %; None where the points are too few to hold one out.
        candidates: (name, held-out error) of every candidate that was compared.
        num_points: measurements it was fitted to.
    """

    method: str
    features: tuple[str, ...]
    knots: tuple[tuple[float, ...], ...]
    coefficients: tuple[tuple[float, ...], ...]
    intercept: float
    window: float | None
    ranges: tuple[tuple[float, float], ...]
    error: float | None
    candidates: tuple[tuple[str, float], ...]
    num_points: int

    def predict_s(self, points: Sequence[SweepPoint] | Work) -> Array:
        """Latencies in seconds, shape (points,); millions of them a second where the points are a Work."""
        work = points if isinstance(points, Work) else Work.of(points)
        return np.concatenate([self._predict(block) for block in work.blocks()]) if len(work) else np.empty(0)

    def _predict(self, work: Work) -> Array:
        total = np.full(len(work), self.intercept)
        features = Features(work, self.window)
        for name, knots, coefficients in zip(self.features, self.knots, self.coefficients, strict=True):
            if any(coefficients):
                total += _ramps(features[name], knots, coefficients)
        return total

    def out_of_range(self, points: SweepPoint | Work) -> str | None:
        """One line on the feature and the point that lie furthest outside of what was measured, or None."""
        work = points if isinstance(points, Work) else Work.of([points])
        values = features_of(work, self.features, self.window)
        low, high = np.array(self.ranges).T
        beyond = np.maximum(values / np.maximum(high, 1e-9), (low + 1e-9) / (values + 1e-9))
        beyond[(low <= values) & (values <= high)] = 0
        point, feature = np.unravel_index(np.argmax(beyond), beyond.shape)
        if not beyond[point, feature]:
            return None
        return (
            f"{self.features[feature]} {values[point, feature]:,.0f} is outside of the measured "
            f"{low[feature]:,.0f} to {high[feature]:,.0f}"
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON document that `from_json` reads back."""
        return {name: _plain(value) for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Regressor:
        """The inverse of `to_json`."""
        values = {name: _tuples(value) for name, value in document.items()}
        return cls(**values)


def fit(signature: Signature, outcomes: Mapping[SweepPoint, Measurement]) -> Regressor:
    """The simplest candidate that predicts held-out points as well as any, fitted to all measurements.

    As well as any: within one standard error of the smallest held-out error (Breiman et al. 1984), paired. Where noise
    alone sets candidates apart, the one that comes first is seldom the best on other points. Candidates differ in
    features and in the number of knots. Coefficients minimise squared log-like errors (non-negative least squares,
    Lawson and Hanson 1974), each point weighted by how well its mean is known, and less where it lies far off
    (Holland and Welsch 1977): an outlier is kept and does not bend the fit. The held-out error is the weighted mean
    absolute relative error over folds that leave out every fifth point by size, or one point where there are few.

    Args:
        signature: of the operation.
        outcomes: its measurements.

    Raises:
        MissingMeasurements: no point was measured.
    """
    if not outcomes:
        raise MissingMeasurements(f"{signature.label} has no measurement to fit a regressor to")
    data = _Data.of(signature, outcomes)
    trials = _compare(signature, data)
    best = _winner(trials) if trials else None
    candidate = best.candidate if best else _candidates(signature, data)[0]
    matrix = data.matrix(candidate)
    if candidate.isotonic:
        knots, coefficients, intercept = _isotonic(matrix[:, 0], data.latencies_s, data.weights)
    else:
        knots, coefficients, intercept = _Solver.of(matrix, candidate.num_knots).fit(data)
    return Regressor(
        method=candidate.name,
        features=candidate.features,
        knots=knots,
        coefficients=coefficients,
        intercept=intercept,
        window=data.window,
        ranges=tuple((float(low), float(high)) for low, high in zip(matrix.min(0), matrix.max(0), strict=True)),
        error=best.error if best else None,
        candidates=tuple((trial.candidate.name, trial.error) for trial in trials),
        num_points=len(outcomes),
    )


def held_out_errors(signature: Signature, outcomes: Mapping[SweepPoint, Measurement]) -> dict[SweepPoint, float]:
    """Absolute relative error of each measured point when the winning candidate is fitted without it, 0.05 for 5 %.

    Args:
        signature: of the operation.
        outcomes: its measurements.

    Returns:
        By sweep point; the fastest and the slowest are always in the fit and are left out. Empty below three points.
    """
    if len(outcomes) < _MIN_POINTS:
        return {}
    data = _Data.of(signature, outcomes)
    best = _winner(_compare(signature, data))
    points = list(outcomes)
    return {points[i]: float(error) for i, error in zip(best.held, best.errors, strict=True)}


@dataclass(frozen=True)
class _Candidate:
    """A name, the features and the knots of each: one thing that is tried."""

    name: str
    features: tuple[str, ...]
    num_knots: int

    @property
    def isotonic(self) -> bool:
        """Whether it goes from one measured point to the next, in place of least squares over ramps."""
        return self.num_knots == _EVERY_POINT


@dataclass(frozen=True)
class _Trial:
    """Held-out errors of a candidate: places of the points that were held out, and the error of each."""

    candidate: _Candidate
    held: npt.NDArray[np.intp]
    errors: Array
    error: float


@dataclass(frozen=True)
class _Data:
    """Measurements as arrays.

    Attributes:
        work: of the points.
        latencies_s: means, shape (points,).
        weights: how well each mean is known, 1 for perfectly, shape (points,).
        window: attention window in tokens, or None.
    """

    work: Work
    latencies_s: Array
    weights: Array
    window: float | None

    @classmethod
    def of(cls, signature: Signature, outcomes: Mapping[SweepPoint, Measurement]) -> _Data:
        """Arrays of the outcomes, in their order.

        The standard error of a mean of n normal samples is sigma / sqrt(n), and sigma their IQR / 1.349.
        """
        measured = list(outcomes.values())
        latencies_s = np.array([each.mean_s for each in measured])
        spread = np.array([each.iqr_s for each in measured]) / 1.349 / latencies_s
        rounds = np.minimum([each.rounds for each in measured], _INDEPENDENT_ROUNDS)
        weights = _MODEL_ERROR / np.sqrt(_MODEL_ERROR**2 + spread**2 / rounds)
        attribute = dict(signature.attributes).get("sliding_window")
        return cls(Work.of(list(outcomes)), latencies_s, weights, float(attribute) if attribute else None)

    def matrix(self, candidate: _Candidate) -> Array:
        """The candidate's features, shape (points, features)."""
        return features_of(self.work, candidate.features, self.window)


def _candidates(signature: Signature, data: _Data) -> list[_Candidate]:
    """Everything that is tried, the simplest first."""
    sets: dict[str, tuple[str, ...]]
    if signature.swept == "routing" and data.work.activated is not None:
        sets = {
            "experts": ("size", "activated"),
            "busiest expert": ("size", "activated", "busiest"),
            "expert tiles": ("size", "activated", "busiest_tiles"),
        }
    elif signature.swept != "batch":
        sets = {"size": ("size",), "tiles": ("size", "tiles")}
    elif signature.kind is OperationKind.OVERHEAD:
        sets = {"requests": ("num_reqs",), "requests and tokens": ("num_reqs", "num_tokens")}
    else:
        phases = ("num_reqs", "prompt_tokens", "prompt_pairs", "kv_tokens")
        sets = {
            "roofline": ("num_reqs", "num_tokens", "pairs", "kv_tokens"),
            "phases": phases,
            "tiled": (*phases, "tile_tokens"),
            "longest": (*phases, "longest_kv", "longest_pairs"),
        }
    one_size = signature.swept in ("num_tokens", "num_reqs")
    ways = {"affine": 1, "3 ramps": 3} | ({"6 ramps": 6, "isotonic": _EVERY_POINT} if one_size else {})
    every = [
        _Candidate(f"{name}, {way}", features, num_knots)
        for way, num_knots in ways.items()
        for name, features in sets.items()
        if num_knots != _EVERY_POINT or len(features) == 1
    ]
    if one_size:
        return every
    # Ramps over several features find noise where points are few.
    most = len(data.work) / _POINTS_PER_NUMBER
    return [each for each in every if each.num_knots == 1 or 1 + len(each.features) * each.num_knots <= most]


def _winner(trials: Sequence[_Trial]) -> _Trial:
    """The first, and so the simplest, whose errors exceed those of the best by less than their standard error.

    Errors are compared point by point, since the noise of a point is in both.
    """
    best = min(trials, key=lambda trial: trial.error)

    def as_good(trial: _Trial) -> bool:
        more = trial.errors - best.errors
        return trial.error - best.error <= float(more.std()) / math.sqrt(len(more))

    return next(trial for trial in trials if as_good(trial))


def _compare(signature: Signature, data: _Data) -> list[_Trial]:
    """The held-out errors of every candidate; none where the points are too few. The extremes are always in the fit."""
    order = np.argsort(data.latencies_s, kind="stable")[1:-1]
    if len(data.latencies_s) < _MIN_POINTS:
        return []
    folds = [order[fold :: min(len(order), _FOLDS)] for fold in range(min(len(order), _FOLDS))]
    if len(order) <= 2 * _FOLDS:
        folds = [order[i : i + 1] for i in range(len(order))]
    held = np.concatenate(folds)
    trials = []
    for candidate in _candidates(signature, data):
        predicted = np.concatenate(list(_predict_folds(candidate, data, folds)))
        errors = np.abs(predicted / data.latencies_s[held] - 1)
        error = float(np.average(errors, weights=data.weights[held]))
        trials.append(_Trial(candidate, held, errors, error))
    return trials


def _predict_folds(candidate: _Candidate, data: _Data, folds: Sequence[npt.NDArray[np.intp]]) -> Iterator[Array]:
    """The candidate's latencies of each fold's points, fitted without them."""
    matrix = data.matrix(candidate)
    rows = None if candidate.isotonic else _Solver.of(matrix, candidate.num_knots).weights(data)
    for fold in folds:
        kept = np.ones(len(data.latencies_s), dtype=bool)
        kept[fold] = False
        if rows is None:
            fitted = _isotonic(matrix[kept, 0], data.latencies_s[kept], data.weights[kept])
            (knots,), (coefficients,), intercept = fitted
            yield intercept + _ramps(matrix[fold, 0], knots, coefficients)
        else:
            # A knot at a point that is held out would be one that nothing holds in its place.
            solver = _Solver.of(matrix[kept], candidate.num_knots)
            yield solver.design_of(matrix[fold]) @ solver.solve(rows[kept])


def _isotonic(column: Array, latencies_s: Array, weights: Array) -> _Parameters:
    """Power laws from point to point, after latencies that fall as work grows are pooled (Ayer et al. 1955).

    A power law is a straight line on log axes; between two points it is drawn by a few ramps, so that this is one more
    regressor of the same form. Constant before the first point; after the last, the last slope or the mean one.
    """
    from scipy.optimize import isotonic_regression

    order = np.argsort(column)
    sizes = column[order]
    logs = isotonic_regression(np.log(latencies_s[order]), weights=weights[order] ** 2).x
    steps = np.arange((len(sizes) - 1) * _BETWEEN + 1) / _BETWEEN
    knots = np.exp(np.interp(steps, np.arange(len(sizes)), np.log(sizes)))
    heights = np.exp(np.interp(steps, np.arange(len(sizes)), logs))
    slopes = np.maximum(np.diff(heights), 0) / np.diff(knots)
    mean = (heights[-1] - heights[0]) / max(knots[-1] - knots[0], 1.0)
    beyond = max(float(mean), *map(float, slopes[-1:]), 0.0)
    places = (0.0, *map(float, knots))
    return (places,), ((0.0, *map(float, slopes), beyond),), float(heights[0])


@dataclass(frozen=True)
class _Solver:
    """Non-negative least squares over the ramps of a matrix of features.

    Attributes:
        knots: of each feature, ascending.
        design: a column of ones and one for each ramp, shape (points, ramps + 1).
    """

    knots: tuple[Array, ...]
    design: Array

    @classmethod
    def of(cls, matrix: Array, num_knots: int) -> _Solver:
        """Ramps with knots at zero and at quantiles of each feature's values."""
        knots = tuple(_knots(column, num_knots) for column in matrix.T)
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

    def weights(self, data: _Data) -> Array:
        """Rows for `solve` that make squared errors log-like and far ones linear, shape (points, 2).

        With both sides divided by the root of what is measured times what was predicted before, an error is
        (p - y) / sqrt(p y), nearly log(p / y): too high and too low weigh alike.
        """
        latencies_s = data.latencies_s
        rows = np.column_stack([data.weights / latencies_s, data.weights])
        for _ in range(_REWEIGHTINGS):
            predicted = np.maximum(self.design @ self.solve(rows), 1e-3 * latencies_s)
            residuals = np.abs(np.log(predicted / latencies_s))
            scale = max(1.4826 * float(np.median(residuals)), _MODEL_ERROR / 2)
            trust = 1 / np.sqrt(1 + (residuals / (_CAUCHY * scale)) ** 2)
            factor = data.weights * trust / np.sqrt(predicted * latencies_s)
            rows = np.column_stack([factor, factor * latencies_s])
        return rows

    def fit(self, data: _Data) -> _Parameters:
        """Knots, coefficients and intercept of the robust fit."""
        solution = self.solve(self.weights(data))
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


def _ramps(column: Array, knots: Sequence[float], coefficients: Sequence[float]) -> Array:
    """Sum of the ramps: a piecewise-linear function with slope coefficients[i] from knots[i] on."""
    if len(knots) == 1:
        return column * coefficients[0]  # the one knot is zero
    heights = np.concatenate([[0.0], np.cumsum(np.array(coefficients[:-1]) * np.diff(knots))])
    ramps: Array = np.interp(column, knots, heights) + coefficients[-1] * np.maximum(column - knots[-1], 0)
    return ramps


def _plain(value: object) -> object:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _tuples(value: object) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
