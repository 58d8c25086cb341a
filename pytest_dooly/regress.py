"""Measurements -> Regressor: non-negative combinations of ramps over what the kernel does.

Every candidate is `intercept + sum_j c_j * ramp_j(work)` with non-negative coefficients, where a ramp rises from one
knot of a work feature to the next and then stays. Work features grow with every request, query and context, so no
regressor can predict a negative latency or one that falls as work grows. The parameters are a few lists of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_dooly.batch import SweepPoint
from pytest_dooly.errors import MissingMeasurements
from pytest_dooly.measurement import Measurement
from pytest_dooly.operation import OperationKind
from pytest_dooly.signature import Signature

__all__ = ["Regressor", "Work", "features_of", "fit"]

Array = npt.NDArray[np.float64]

_FOLDS = 5
_MIN_POINTS = 3
"""Fewer leave none to hold out: the two that are always in the fit are the extremes."""


@dataclass(frozen=True)
class Work:
    """Every request of many sweep points, flat, so that features are computed for all at once.

    Attributes:
        query_lens: shape (requests,).
        context_lens: shape (requests,).
        starts: index of each point's first request, shape (points,).
    """

    query_lens: Array
    context_lens: Array
    starts: npt.NDArray[np.intp]

    @classmethod
    def of(cls, points: Sequence[SweepPoint]) -> Work:
        """The work of sweep points; one that only counts tokens or requests is that many in one request."""
        pairs: list[tuple[int, int]] = []
        starts = []
        for point in points:
            starts.append(len(pairs))
            if point.batch is None:
                pairs.append((point.num_tokens or point.num_reqs or 0, 0))
            else:
                pairs += [(request.query_len, request.context_len) for request in point.batch.requests]
        queries, contexts = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
        return cls(queries, contexts, np.array(starts, dtype=np.intp))

    def sum(self, per_request: Array) -> Array:
        """The sum over each point's requests, shape (points,)."""
        return np.add.reduceat(per_request, self.starts)


_Feature = Callable[[Work, float], Array]

_FEATURES: Mapping[str, _Feature] = {
    "size": lambda work, window: work.sum(work.query_lens),
    "tiles": lambda work, window: np.ceil(work.sum(work.query_lens) / 16),
    "num_reqs": lambda work, window: work.sum(np.ones_like(work.query_lens)),
    "num_tokens": lambda work, window: work.sum(work.query_lens),
    "prompt_tokens": lambda work, window: work.sum(np.where(work.query_lens > 1, work.query_lens, 0)),
    "pairs": lambda work, window: work.sum(_pairs(work, window)),
    "prompt_pairs": lambda work, window: work.sum(np.where(work.query_lens > 1, _pairs(work, window), 0)),
    "kv_tokens": lambda work, window: work.sum(_read(work, window)),
    "longest_kv": lambda work, window: np.maximum.reduceat(_read(work, window), work.starts),
}
"""Work features by name: (work, attention window) -> shape (points,).

`pairs` counts attended (query, key) pairs, `kv_tokens` keys read; a window cuts both off.
"""


def _pairs(work: Work, window: float) -> Array:
    """Attended pairs of each request: sum over its queries i = 1..q of min(context + i, window)."""
    q, c = work.query_lens, work.context_lens
    growing = np.clip(window - c, 0, q)  # queries that still see everything before them
    return growing * c + growing * (growing + 1) / 2 + (q - growing) * np.minimum(window, 1e18)


def _read(work: Work, window: float) -> Array:
    return np.minimum(work.query_lens + work.context_lens, window + work.query_lens - 1)


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

    def predict_s(self, points: Sequence[SweepPoint]) -> Array:
        """Latencies in seconds, shape (points,)."""
        return self.predict_work_s(Work.of(points))

    def predict_work_s(self, work: Work) -> Array:
        """Latencies in seconds, shape (points,); as fast as numpy interpolates."""
        matrix = features_of(work, self.features, self.window)
        total = np.full(matrix.shape[0], self.intercept)
        for column, knots, coefficients in zip(matrix.T, self.knots, self.coefficients, strict=True):
            total += _ramps(column, np.array(knots), np.array(coefficients))
        return total

    def out_of_range(self, point: SweepPoint) -> str | None:
        """One line on the feature that lies furthest outside of what was measured, or None."""
        values = features_of(Work.of([point]), self.features, self.window)[0]
        for name, value, (low, high) in zip(self.features, values, self.ranges, strict=True):
            if not low <= value <= high:
                return f"{name} {value:,.0f} is outside of the measured {low:,.0f} to {high:,.0f}"
        return None

    def to_json(self) -> dict[str, Any]:
        """A JSON document that `from_json` reads back."""
        return {name: _plain(value) for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Regressor:
        """The inverse of `to_json`."""
        values = {name: _tuples(value) for name, value in document.items()}
        return cls(**values)


def features_of(work: Work, names: Sequence[str], window: float | None) -> Array:
    """The features' values, shape (points, features)."""
    return np.column_stack([_FEATURES[name](work, window or math.inf) for name in names])


def fit(signature: Signature, outcomes: Mapping[SweepPoint, Measurement]) -> Regressor:
    """The candidate with the smallest held-out error, fitted to all measurements.

    Candidates differ in features and in the number of knots. Coefficients minimise the squared relative error
    (non-negative least squares, Lawson and Hanson 1974); the held-out error is the mean absolute relative error over
    folds that leave out every fifth point by size, or one point where there are few.

    Args:
        signature: of the operation.
        outcomes: its measurements.

    Raises:
        MissingMeasurements: no point was measured.
    """
    if not outcomes:
        raise MissingMeasurements(f"{signature.label} has no measurement to fit a regressor to")
    points = list(outcomes)
    work = Work.of(points)
    latencies_s = np.array([outcome.median_s for outcome in outcomes.values()])
    attribute = dict(signature.attributes).get("sliding_window")
    window = float(attribute) if attribute else None
    candidates = _candidates(signature, len(points))
    tried: list[tuple[float, str, tuple[str, ...], int]] = []
    if len(points) >= _MIN_POINTS:
        for name, features, num_knots in candidates:
            matrix = features_of(work, features, window)
            tried.append((_held_out_error(matrix, latencies_s, num_knots), name, features, num_knots))
    error, name, features, num_knots = min(tried) if tried else (None, *candidates[0])
    matrix = features_of(work, features, window)
    knots, coefficients, intercept = _solve(matrix, latencies_s, num_knots)
    return Regressor(
        method=name,
        features=features,
        knots=knots,
        coefficients=coefficients,
        intercept=intercept,
        window=window,
        ranges=tuple((float(low), float(high)) for low, high in zip(matrix.min(0), matrix.max(0), strict=True)),
        error=error,
        candidates=tuple((candidate, held_out) for held_out, candidate, _, _ in tried),
        num_points=len(points),
    )


def _candidates(signature: Signature, num_points: int) -> list[tuple[str, tuple[str, ...], int]]:
    """(name, features, knots of each feature) of everything that is tried."""
    sets: dict[str, tuple[str, ...]]
    if signature.swept != "batch":
        sets = {"size": ("size",), "tiles": ("size", "tiles")}
    elif signature.kind is OperationKind.OVERHEAD:
        sets = {"requests": ("num_reqs",), "requests and tokens": ("num_reqs", "num_tokens")}
    else:
        sets = {
            "roofline": ("num_reqs", "num_tokens", "pairs", "kv_tokens"),
            "phases": ("num_reqs", "prompt_tokens", "prompt_pairs", "kv_tokens"),
            "longest": ("num_reqs", "prompt_tokens", "prompt_pairs", "kv_tokens", "longest_kv"),
        }
    counts = [1, 3, 6] + ([num_points] if signature.swept != "batch" else [])
    ways = {1: "affine", 3: "3 ramps", 6: "6 ramps"}
    return [
        (f"{name}, {ways.get(count, 'interpolated')}", features, count)
        for name, features in sets.items()
        for count in dict.fromkeys(counts)
    ]


def _held_out_error(matrix: Array, latencies_s: Array, num_knots: int) -> float:
    """Mean absolute relative error of points that the fit has not seen; the extremes are always in the fit."""
    order = np.argsort(latencies_s)[1:-1]
    folds = len(order) if len(order) <= 2 * _FOLDS else _FOLDS
    errors = []
    for fold in range(folds):
        held = order[fold::folds]
        kept = np.setdiff1d(np.arange(len(latencies_s)), held)
        knots, coefficients, intercept = _solve(matrix[kept], latencies_s[kept], num_knots)
        predicted = np.full(len(held), intercept)
        for column, k, c in zip(matrix[held].T, knots, coefficients, strict=True):
            predicted += _ramps(column, np.array(k), np.array(c))
        errors.append(np.abs(predicted / latencies_s[held] - 1))
    return float(np.concatenate(errors).mean())


def _solve(
    matrix: Array, latencies_s: Array, num_knots: int
) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...], float]:
    """Knots, coefficients and intercept of the least relative error."""
    from scipy.optimize import nnls  # half a second that a plan or a prediction does without

    knots = [_knots(column, num_knots) for column in matrix.T]
    columns = [np.ones(len(latencies_s))]
    for column, places in zip(matrix.T, knots, strict=True):
        ends = np.append(places[1:], math.inf)
        columns += [np.clip(column - start, 0, end - start) for start, end in zip(places, ends, strict=True)]
    design = np.column_stack(columns) / latencies_s[:, None]
    # Columns of like size keep the solver's tolerance meaningful: pairs are millions, requests are one.
    scale = np.maximum(design.max(0), 1e-30)
    solution, _ = nnls(design / scale, np.ones(len(latencies_s)), maxiter=50 * design.shape[1])
    solution = solution / scale
    coefficients, at = [], 1
    for places in knots:
        coefficients.append(tuple(map(float, solution[at : at + len(places)])))
        at += len(places)
    return tuple(tuple(map(float, places)) for places in knots), tuple(coefficients), float(solution[0])


def _knots(column: Array, num_knots: int) -> Array:
    """Zero and quantiles of the distinct values: where a ramp begins."""
    distinct = np.unique(column)[:-1]
    distinct = distinct[distinct > 0]
    inner = distinct if num_knots > len(distinct) else np.quantile(distinct, np.linspace(0, 1, num_knots + 1)[1:-1])
    return np.unique(np.concatenate([[0.0], inner]))


def _ramps(column: Array, knots: Array, coefficients: Array) -> Array:
    """Sum of the ramps: a piecewise-linear function with slope coefficients[i] from knots[i] on."""
    heights = np.concatenate([[0.0], np.cumsum(coefficients[:-1] * np.diff(knots))])
    i = np.clip(np.searchsorted(knots, column, side="right") - 1, 0, len(knots) - 1)
    ramps: Array = heights[i] + coefficients[i] * np.maximum(column - knots[i], 0)
    return ramps


def _plain(value: object) -> object:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _tuples(value: object) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
