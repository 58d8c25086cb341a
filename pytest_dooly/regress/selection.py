"""Work features and latencies -> the simplest of several fits that predicts held-out points as well as any."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.operation import OperationKind
from pytest_dooly.core.signature import Signature
from pytest_dooly.regress.ramps import EVERY_POINT, MODEL_ERROR, Solver, isotonic, ramps_of

__all__ = [
    "Candidate",
    "Columns",
    "FeatureSets",
    "Fitted",
    "Learning",
    "Trial",
    "candidates_of",
    "feature_sets",
    "fit_best",
    "folds_of",
    "sets_with",
    "trials_of",
    "winner",
]

Array = npt.NDArray[np.float64]
Fold = npt.NDArray[np.intp]
"""Places of the points that are held out together."""

FeatureSets = Mapping[str, tuple[str, ...]]
"""Features that are tried together, by name, the simplest first."""

_FOLDS = 5

_MIN_POINTS = 3
"""Fewer leave none to hold out: the two that are always in the fit are the extremes."""

_POINTS_PER_NUMBER = 4
"""Measurements for each number that ramps over several features are fitted with."""

_APART = 3.0
"""Standard deviations by which the smallest size is faster than the others lead to expect, where it is apart."""

_SIZES: FeatureSets = {"size": ("size",), "tiles": ("size", "tiles")}
_EXPERTS: FeatureSets = {
    "experts": ("size", "activated"),
    "busiest expert": ("size", "activated", "busiest"),
    "expert tiles": ("size", "activated", "busiest_tiles"),
}
_OVERHEADS: FeatureSets = {"requests": ("num_reqs",), "requests and tokens": ("num_reqs", "num_tokens")}
_PHASES = ("num_reqs", "prompt_tokens", "prompt_pairs", "kv_tokens")
_BATCHES: FeatureSets = {
    "roofline": ("num_reqs", "num_tokens", "pairs", "kv_tokens"),
    "phases": _PHASES,
    "tiled": (*_PHASES, "tile_tokens"),
    "longest": (*_PHASES, "longest_kv", "longest_pairs"),
}


class Columns(Protocol):
    """Features by name, each of shape (points,): a `Features` of a work, or a mapping."""

    def __getitem__(self, name: str, /) -> Array: ...


@dataclass(frozen=True)
class Candidate:
    """A name, the features and the knots of each: one thing that is tried."""

    name: str
    features: tuple[str, ...]
    num_knots: int

    @property
    def isotonic(self) -> bool:
        """Whether it goes from one measured point to the next, in place of least squares over ramps."""
        return self.num_knots == EVERY_POINT


@dataclass(frozen=True)
class Learning:
    """What is fitted to.

    Attributes:
        columns: features by name.
        latencies_s: means, shape (points,).
        weights: how well each mean is known, 1 for perfectly, shape (points,); a squared error counts by its square.
    """

    columns: Columns
    latencies_s: Array
    weights: Array

    def matrix(self, candidate: Candidate) -> Array:
        """The candidate's features, shape (points, features)."""
        return np.column_stack([self.columns[name] for name in candidate.features])


@dataclass(frozen=True)
class Trial:
    """Held-out errors of a candidate: places of the points that were held out, and the error of each."""

    candidate: Candidate
    held: npt.NDArray[np.intp]
    errors: Array
    error: float


@dataclass(frozen=True)
class Fitted:
    """What was found; attributes as of a Regressor."""

    method: str
    features: tuple[str, ...]
    knots: tuple[tuple[float, ...], ...]
    coefficients: tuple[tuple[float, ...], ...]
    intercept: float
    ranges: tuple[tuple[float, float], ...]
    error: float | None
    candidates: tuple[tuple[str, float], ...]


def feature_sets(signature: Signature, *, routed: bool) -> FeatureSets:
    """What is tried for an operation; `routed` where its points say how tokens spread over experts."""
    if signature.swept == "routing" and routed:
        return _EXPERTS
    if signature.swept != "batch":
        return _SIZES
    return _OVERHEADS if signature.kind is OperationKind.OVERHEAD else _BATCHES


def sets_with(columns: Sequence[str]) -> FeatureSets:
    """What is tried for the operations that have these features; for no operation's, all of them at once."""
    known = (_SIZES, _EXPERTS, _OVERHEADS, _BATCHES)
    fallback = {"columns": tuple(columns)}
    return next((sets for sets in known if set(itertools.chain(*sets.values())) == set(columns)), fallback)


def candidates_of(sets: FeatureSets, num_points: int, *, one_size: bool) -> list[Candidate]:
    """Everything that is tried, the simplest first.

    Args:
        sets: of features.
        num_points: that are fitted to.
        one_size: whether all features are of one number, so that many knots find no noise.
    """
    ways = {"affine": 1, "3 ramps": 3} | ({"6 ramps": 6, "isotonic": EVERY_POINT} if one_size else {})
    every = [
        Candidate(f"{name}, {way}", features, num_knots)
        for way, num_knots in ways.items()
        for name, features in sets.items()
        if num_knots != EVERY_POINT or len(features) == 1
    ]
    if one_size:
        return every
    # Ramps over several features find noise where points are few.
    most = num_points / _POINTS_PER_NUMBER
    return [each for each in every if each.num_knots == 1 or 1 + len(each.features) * each.num_knots <= most]


def fit_best(data: Learning, candidates: Sequence[Candidate]) -> Fitted:
    """The winner among the candidates, fitted to all points; the first one where none can be held out."""
    trials = trials_of(data, candidates)
    best = winner(trials) if trials else None
    candidate = best.candidate if best else candidates[0]
    matrix = data.matrix(candidate)
    if candidate.isotonic:
        knots, coefficients, intercept = isotonic(matrix[:, 0], data.latencies_s, data.weights)
    else:
        apart = best is not None and _first_apart(data, best)
        solver = Solver.of(matrix, candidate.num_knots, first_apart=apart)
        knots, coefficients, intercept = solver.fit(data.latencies_s, data.weights)
    return Fitted(
        method=candidate.name,
        features=candidate.features,
        knots=knots,
        coefficients=coefficients,
        intercept=intercept,
        ranges=tuple((float(low), float(high)) for low, high in zip(matrix.min(0), matrix.max(0), strict=True)),
        error=best.error if best else None,
        candidates=tuple((trial.candidate.name, trial.error) for trial in trials),
    )


def folds_of(latencies_s: Array) -> list[Fold]:
    """Which points are held out together: every fifth by latency, or one at a time where they are few; none below 3.

    The fastest and the slowest are in no fold. That is scikit-learn's PredefinedSplit with them at -1, and not its
    KFold, which would hold out the extremes, so that errors were of extrapolation, and neighbours together.
    """
    order = np.argsort(latencies_s, kind="stable")[1:-1]
    if len(latencies_s) < _MIN_POINTS:
        return []
    if len(order) <= 2 * _FOLDS:
        return [order[i : i + 1] for i in range(len(order))]
    return [order[fold::_FOLDS] for fold in range(_FOLDS)]


def trials_of(data: Learning, candidates: Sequence[Candidate]) -> list[Trial]:
    """The held-out errors of every candidate; none where the points are too few."""
    folds = folds_of(data.latencies_s)
    if not folds:
        return []
    held = np.concatenate(folds)
    trials = []
    for candidate in candidates:
        predicted = np.concatenate(list(_predict_folds(candidate, data, folds)))
        # Not scikit-learn's metric: the error of each point is compared, and importing it takes two seconds.
        errors = np.abs(predicted / data.latencies_s[held] - 1)
        error = float(np.average(errors, weights=data.weights[held]))
        trials.append(Trial(candidate, held, errors, error))
    return trials


def winner(trials: Sequence[Trial]) -> Trial:
    """The first, and so the simplest, whose errors exceed those of the best by less than their standard error.

    Errors are compared point by point, since the noise of a point is in both.
    """
    best = min(trials, key=lambda trial: trial.error)

    def as_good(trial: Trial) -> bool:
        more = trial.errors - best.errors
        return trial.error - best.error <= float(more.std()) / math.sqrt(len(more))

    return next(trial for trial in trials if as_good(trial))


def _first_apart(data: Learning, best: Trial) -> bool:
    """Whether the smallest size is faster than what the others lead to expect, beyond their scatter and its noise.

    One token may run in one thread where two run in several, or in a kernel of its own. The smallest size is in no
    fold, so that no candidate wins by telling it.
    """
    matrix = data.matrix(best.candidate)
    if not {*best.candidate.features} <= {"size", "tiles"} and matrix.shape[1] > 1:
        return False  # of several features none orders the points
    others = matrix[:, 0] > matrix[:, 0].min()
    first = ~others
    if others.sum() < _MIN_POINTS:
        return False
    solver = Solver.of(matrix[others], best.candidate.num_knots)
    rows = solver.weights(data.latencies_s[others], data.weights[others])
    expected_s = solver.design_of(matrix[first]) @ solver.solve(rows)
    # What the others lead to expect may be nothing at all, which no size is faster than.
    faster = float(np.log(np.maximum(expected_s, np.finfo(float).tiny) / data.latencies_s[first]).min())
    noise = MODEL_ERROR * math.sqrt(float((1 / data.weights[first] ** 2 - 1).max()))
    scatter = 1.4826 * float(np.median(best.errors))
    return faster > _APART * math.hypot(scatter, noise, MODEL_ERROR)


def _predict_folds(candidate: Candidate, data: Learning, folds: Sequence[Fold]) -> Iterator[Array]:
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
