"""Measurements -> the simplest regressor that predicts held-out points as well as any."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.measurement import Measurement
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import Signature
from pytest_dooly.core.work import Work, features_of
from pytest_dooly.errors import MissingMeasurements
from pytest_dooly.regress.ramps import EVERY_POINT, MODEL_ERROR, Solver, isotonic, ramps_of
from pytest_dooly.regress.regressor import Regressor

__all__ = ["fit", "held_out_errors"]

Array = npt.NDArray[np.float64]


_FOLDS = 5

_MIN_POINTS = 3
"""Fewer leave none to hold out: the two that are always in the fit are the extremes."""

_INDEPENDENT_ROUNDS = 10
"""Rounds follow each other within a second and share the machine's mood, so that more of them say little more."""

_POINTS_PER_NUMBER = 4
"""Measurements for each number that ramps over several features are fitted with."""


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
        knots, coefficients, intercept = isotonic(matrix[:, 0], data.latencies_s, data.weights)
    else:
        knots, coefficients, intercept = Solver.of(matrix, candidate.num_knots).fit(data.latencies_s, data.weights)
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
        return self.num_knots == EVERY_POINT


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
        weights = MODEL_ERROR / np.sqrt(MODEL_ERROR**2 + spread**2 / rounds)
        window = float(signature.window) if signature.window else None
        return cls(Work.of(list(outcomes)), latencies_s, weights, window)

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
    ways = {"affine": 1, "3 ramps": 3} | ({"6 ramps": 6, "isotonic": EVERY_POINT} if one_size else {})
    every = [
        _Candidate(f"{name}, {way}", features, num_knots)
        for way, num_knots in ways.items()
        for name, features in sets.items()
        if num_knots != EVERY_POINT or len(features) == 1
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
    rows = (
        None if candidate.isotonic else Solver.of(matrix, candidate.num_knots).weights(data.latencies_s, data.weights)
    )
    for fold in folds:
        kept = np.ones(len(data.latencies_s), dtype=bool)
        kept[fold] = False
        if rows is None:
            fitted = isotonic(matrix[kept, 0], data.latencies_s[kept], data.weights[kept])
            (knots,), (coefficients,), intercept = fitted
            yield intercept + ramps_of(matrix[fold, 0], knots, coefficients)
        else:
            # A knot at a point that is held out would be one that nothing holds in its place.
            solver = Solver.of(matrix[kept], candidate.num_knots)
            yield solver.design_of(matrix[fold]) @ solver.solve(rows[kept])
