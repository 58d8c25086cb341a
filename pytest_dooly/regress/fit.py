"""Measurements -> the simplest regressor that predicts held-out points as well as any."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.measurement import Measurement
from pytest_dooly.core.signature import Signature
from pytest_dooly.core.work import Features, Work
from pytest_dooly.errors import MissingMeasurements
from pytest_dooly.regress.ramps import MODEL_ERROR
from pytest_dooly.regress.regressor import Regressor
from pytest_dooly.regress.selection import (
    Candidate,
    Learning,
    candidates_of,
    feature_sets,
    fit_best,
    trials_of,
    winner,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["fit", "held_out_errors", "weights_of", "work_frame"]

_INDEPENDENT_ROUNDS = 10
"""Rounds follow each other within a second and share the machine's mood, so that more of them say little more."""


def fit(signature: Signature, outcomes: Mapping[SweepPoint, Measurement]) -> Regressor:
    """The simplest candidate that predicts held-out points as well as any, fitted to all measurements.

    As well as any: within one standard error of the smallest held-out error (Breiman et al. 1984), paired. Where noise
    alone sets candidates apart, the one that comes first is seldom the best on other points. Candidates differ in
    features and in the number of knots. Coefficients minimise squared log-like errors (non-negative least squares,
    Lawson and Hanson 1974), each point weighted by how well its mean is known, and less where it lies far off
    (Holland and Welsch 1977): an outlier is kept and does not bend the fit. The held-out error is the weighted mean
    absolute relative error over folds that leave out every fifth point by size, or one point where there are few.

    `estimator.RampRegressor` is the same fit for scikit-learn; this one does without importing it.

    Args:
        signature: of the operation.
        outcomes: its measurements.

    Raises:
        MissingMeasurements: no point was measured.
    """
    if not outcomes:
        raise MissingMeasurements(f"{signature.label} has no measurement to fit a regressor to")
    fitted = fit_best(*_problem(signature, outcomes))
    return Regressor(**vars(fitted), window=_window(signature), num_points=len(outcomes))


def held_out_errors(signature: Signature, outcomes: Mapping[SweepPoint, Measurement]) -> dict[SweepPoint, float]:
    """Absolute relative error of each measured point when the winning candidate is fitted without it, 0.05 for 5 %.

    Args:
        signature: of the operation.
        outcomes: its measurements.

    Returns:
        By sweep point; the fastest and the slowest are always in the fit and are left out. Empty below three points.
    """
    trials = trials_of(*_problem(signature, outcomes)) if outcomes else []
    if not trials:
        return {}
    best, points = winner(trials), list(outcomes)
    return {points[i]: float(error) for i, error in zip(best.held, best.errors, strict=True)}


def work_frame(
    signature: Signature, points: Sequence[SweepPoint] | Work, names: Sequence[str] | None = None
) -> pd.DataFrame:
    """Work features of points, a column each by its name in `core.work.FEATURES`.

    They are tokens (`size`, `*_tokens`, `busiest`), tiles of 16 of them, requests, experts, and pairs of a query and a
    key.

    Args:
        signature: of the operation.
        points: of its sweep, or as arrays.
        names: of the features; None for every one that is tried for the operation.
    """
    import pandas as pd

    work = points if isinstance(points, Work) else Work.of(points)
    features = Features(work, _window(signature))
    if names is None:
        names = tuple(itertools.chain(*feature_sets(signature, routed=work.activated is not None).values()))
    return pd.DataFrame({name: features[name] for name in dict.fromkeys(names)})


def weights_of(outcomes: Mapping[SweepPoint, Measurement]) -> npt.NDArray[np.float64]:
    """How well each mean is known, 1 for perfectly, shape (points,).

    The standard error of a mean of n normal samples is sigma / sqrt(n), and sigma their IQR / 1.349.
    """
    measured = list(outcomes.values())
    spread = np.array([each.iqr_s for each in measured]) / 1.349 / np.array([each.mean_s for each in measured])
    rounds = np.minimum([each.rounds for each in measured], _INDEPENDENT_ROUNDS)
    weights: npt.NDArray[np.float64] = MODEL_ERROR / np.sqrt(MODEL_ERROR**2 + spread**2 / rounds)
    return weights


def _problem(signature: Signature, outcomes: Mapping[SweepPoint, Measurement]) -> tuple[Learning, list[Candidate]]:
    """The measurements as arrays, in their order, and what is tried."""
    work = Work.of(list(outcomes))
    latencies_s = np.array([each.mean_s for each in outcomes.values()])
    data = Learning(Features(work, _window(signature)), latencies_s, weights_of(outcomes))
    sets = feature_sets(signature, routed=work.activated is not None)
    return data, candidates_of(sets, len(work), one_size=signature.swept in ("num_tokens", "num_reqs"))


def _window(signature: Signature) -> float | None:
    return float(signature.window) if signature.window else None
